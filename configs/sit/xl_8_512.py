"""SiT-XL/8, linear path, velocity, ImageNet 512 x 512 in latents (Ma et al. 2024, arXiv:2401.08740, table 1).

675,664,640 parameters, the fixed positions not counted.

Hardware   not stated.
Expected   no figure.
Reached    not yet reached: not trained here.
"""

from configs import families


def get_config():
    return families.sit(512, patch_size=8, width=1152, depth=28, num_heads=16)
