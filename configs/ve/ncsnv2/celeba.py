"""NCSNv2 (64), VE, CelebA 64 x 64 (Song and Ermon 2020, arXiv:2006.09011).

Source     score_sde, configs/ve/ncsnv2/celeba.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.ncsnv2(
        families.celeba(), network=component("ncsnv2"), sigma_max=90.0, n_scales=500, n_corrector_steps=5, snr=0.128
    )
