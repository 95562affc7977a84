"""SiT-L/2, linear path, velocity, ImageNet 512 x 512 in latents (Ma et al. 2024, arXiv:2401.08740, table 1).

457,840,672 parameters, the fixed positions not counted.

Hardware   not stated.
Expected   no figure.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.sit(512)
    config.network = component("sit", depth=24, num_heads=16, width=1024)
    return config
