"""NCSN, VE, CelebA 64 x 64 (Song and Ermon 2019, arXiv:1907.05600).

Source     score_sde, configs/ve/ncsn/celeba_5.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.ncsn(families.celeba(), network=component("ncsn"), ema_rate=0.999)
