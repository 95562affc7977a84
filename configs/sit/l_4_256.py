"""SiT-L/4, linear path, velocity, ImageNet 256 x 256 in latents (Ma et al. 2024, arXiv:2401.08740, table 1).

457,988,224 parameters, the fixed positions not counted.

Hardware   not stated.
Expected   no figure.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.sit(256)
    config.network = component("sit", depth=24, num_heads=16, patch_size=4, width=1024)
    return config
