"""SiT-S/8, linear path, velocity, ImageNet 256 x 256 in latents (Ma et al. 2024, arXiv:2401.08740, table 1).

33,142,016 parameters, the fixed positions not counted.

Hardware   not stated.
Expected   no figure.
Reached    not yet reached: not trained here.
"""

from configs import families


def get_config():
    return families.sit(256, patch_size=8)
