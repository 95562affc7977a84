"""lsun_bedroom_lr2e-5 (Nichol and Dhariwal 2021, arXiv:2102.09672, tables 1 to 4).

113,676,678 parameters in the source.

Weights    https://openaipublic.blob.core.windows.net/diffusion/march-2021/lsun_uncond_100M_2400K_bs64.pt
Statistics --mode=stats makes them: its authors offer none.
Hardware   not stated.
Expected   no figure.
Reached    not yet reached: not trained here.
"""

from configs import families


def get_config():
    return families.iddpm_lsun(lr=2e-5)
