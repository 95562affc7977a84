"""NCSN++ cont. deep, VE, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2011.13456, tables 2 and 3).

Source     score_sde, configs/ve/cifar10_ncsnpp_deep_continuous.py.
Weights    ve/cifar10_ncsnpp_deep_continuous/ of score_sde_pytorch (torch), at
           https://drive.google.com/drive/folders/1tFmF_uh57O6lx9ggtZT_5LdonVK2cV-e
           score_sde's own (flax msgpack) are at
           https://drive.google.com/drive/folders/10pQygNzF7hOOLwP3q8GiNxSnFRpArUxQ
Statistics cifar10_stats.npz, in assets/stats at
           https://drive.google.com/drive/folders/1gbDrVrFVSupFMRoK7HZo8aFgPvOtpmqB
Hardware   not stated.
Expected   FID 2.20, IS 9.89.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.ve(
        families.cifar10(n_iters=950_001),
        network=component(
            "ncsnpp", dropout=0.1, embedding="fourier", fir=True, num_res_blocks=8, progressive_input="residual"
        ),
    )
