"""DDPM, VP, CelebA-HQ 256 x 256 (Ho et al. 2020, arXiv:2006.11239).

Source     score_sde, configs/vp/ddpm/celebahq.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families


def get_config():
    return families.ddpm_256()
