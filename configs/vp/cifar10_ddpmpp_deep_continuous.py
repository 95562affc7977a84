"""DDPM++ cont. deep, VP, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2011.13456, tables 2 and 3).

Source     score_sde, configs/vp/cifar10_ddpmpp_deep_continuous.py.
Weights    vp/cifar10_ddpmpp_deep_continuous/ of score_sde_pytorch (torch), at
           https://drive.google.com/drive/folders/1tFmF_uh57O6lx9ggtZT_5LdonVK2cV-e
           score_sde's own (flax msgpack) are at
           https://drive.google.com/drive/folders/10pQygNzF7hOOLwP3q8GiNxSnFRpArUxQ
Statistics cifar10_stats.npz, in assets/stats at
           https://drive.google.com/drive/folders/1gbDrVrFVSupFMRoK7HZo8aFgPvOtpmqB
Hardware   not stated.
Expected   FID 2.41, IS 9.68, bits/dim 3.13, FID by the probability flow 3.08.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.vp(families.cifar10(n_iters=950_001), network=component("ncsnpp", dropout=0.1, num_res_blocks=8))
