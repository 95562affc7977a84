"""NCSN++ cont., VE, CelebA-HQ 1024 x 1024 (Song et al. 2021, arXiv:2011.13456).

Source     score_sde, configs/ve/celebahq_ncsnpp_continuous.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families


def get_config():
    return families.ve_1024()
