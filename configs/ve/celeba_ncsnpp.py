"""NCSN++, VE, CelebA 64 x 64 (Song et al. 2021, arXiv:2011.13456).

Source     score_sde, configs/ve/celeba_ncsnpp.py.
Hardware   not stated.
Expected   FID about 2.5 (the author, in an answer).
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.ve_discrete(
        families.celeba(),
        network=component("ncsnpp", dropout=0.1, fir=True, progressive_input="residual"),
        sigma_max=90.0,
    )
