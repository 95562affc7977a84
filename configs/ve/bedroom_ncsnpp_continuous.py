"""NCSN++ cont., VE, LSUN bedroom 256 x 256 (Song et al. 2021, arXiv:2011.13456).

Source     score_sde, configs/ve/bedroom_ncsnpp_continuous.py.
Weights    ve/bedroom_ncsnpp_continuous/ of score_sde_pytorch (torch), at
           https://drive.google.com/drive/folders/1tFmF_uh57O6lx9ggtZT_5LdonVK2cV-e
           score_sde's own (flax msgpack) are at
           https://drive.google.com/drive/folders/10pQygNzF7hOOLwP3q8GiNxSnFRpArUxQ
Statistics --mode=stats makes them: its authors offer none.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families


def get_config():
    return families.ve_256(sigma_max=378.0)
