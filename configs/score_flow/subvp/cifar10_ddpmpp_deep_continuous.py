"""DDPM++ cont. deep, sub-VP, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2101.09258, table 2).

Source     score_flow, configs/subvp/cifar10_ddpmpp_deep_continuous.py.
Weights    cifar10_deep_subvp/checkpoints, with _likelihood, _iw and _flip behind the folder's name for what it was
           trained with; its dequantiser in flowpp_dequantizer/checkpoints. At
           https://drive.google.com/drive/folders/1gbDrVrFVSupFMRoK7HZo8aFgPvOtpmqB
Statistics cifar10_stats.npz, in assets/stats there.
Hardware   not stated.
Expected   no figure without the likelihood weighting.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.score_flow_subvp(
        families.score_flow(n_iters=950_001), network=component("ncsnpp", dropout=0.1, num_res_blocks=8)
    )
