"""NCSNv2 (64), VE, CIFAR-10 32 x 32 (Song and Ermon 2020, arXiv:2006.09011).

Source     score_sde, configs/ve/ncsnv2/cifar10.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.ncsnv2(
        families.cifar10(), network=component("ncsnv2"), sigma_max=50.0, n_scales=232, n_corrector_steps=5, snr=0.176
    )
