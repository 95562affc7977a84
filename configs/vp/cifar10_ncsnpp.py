"""NCSN++, VP, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2011.13456).

Source     score_sde, configs/vp/cifar10_ncsnpp.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.vp_discrete(
        families.cifar10(),
        network=component("ncsnpp", dropout=0.1, fir=True, progressive_input="residual"),
        predictor="reverse_diffusion",
    )
