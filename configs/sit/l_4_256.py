"""SiT-L/4, linear path, velocity, ImageNet 256 x 256 in latents (Ma et al. 2024, arXiv:2401.08740, table 1).

457,988,224 parameters, the fixed positions not counted.

Hardware   not stated.
Expected   no figure.
Reached    not yet reached: not trained here.
"""

from configs import families


def get_config():
    return families.sit(256, patch_size=4, width=1024, depth=24, num_heads=16)
