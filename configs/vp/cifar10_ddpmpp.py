"""DDPM++, VP, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2011.13456, tables 2 and 3).

Source     score_sde, configs/vp/cifar10_ddpmpp.py.
Hardware   not stated.
Expected   FID 2.78, IS 9.64.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.vp_discrete(families.cifar10(), network=component("ncsnpp", dropout=0.1))
