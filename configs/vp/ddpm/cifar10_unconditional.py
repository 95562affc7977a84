"""DDPM, VP, CIFAR-10 32 x 32 (Ho et al. 2020, arXiv:2006.11239).

Source     score_sde, configs/vp/ddpm/cifar10_unconditional.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.vp_discrete(families.cifar10(), network=component("ddpm", conditional=False, dropout=0.1))
