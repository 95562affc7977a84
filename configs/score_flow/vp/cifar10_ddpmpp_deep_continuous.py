"""DDPM++ cont. deep, VP, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2101.09258, table 2).

Source     score_flow, configs/vp/cifar10_ddpmpp_deep_continuous.py.
Weights    cifar10_deep_vp/checkpoints, with _likelihood, _iw and _flip behind the folder's name for what it was trained
           with; its dequantiser in flowpp_dequantizer/checkpoints. At
           https://drive.google.com/drive/folders/1gbDrVrFVSupFMRoK7HZo8aFgPvOtpmqB
Statistics cifar10_stats.npz, in assets/stats there.
Hardware   not stated.
Expected   bits/dim 3.13 uniform, 3.01 variational dequantisation, FID 3.09;
           with --config.training.likelihood_weighting=True --config.training.importance_weighting=True 2.93, 2.80.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.score_flow_vp(
        families.score_flow(n_iters=950_001), network=component("ncsnpp", dropout=0.1, num_res_blocks=8)
    )
