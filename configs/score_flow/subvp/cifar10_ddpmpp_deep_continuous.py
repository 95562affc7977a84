"""DDPM++ cont. deep, sub-VP, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2101.09258, table 2).

Source     score_flow, configs/subvp/cifar10_ddpmpp_deep_continuous.py.
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
