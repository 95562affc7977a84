"""SiT-B/4, linear path, velocity, ImageNet 512 x 512 in latents (Ma et al. 2024, arXiv:2401.08740, table 1).

130,426,496 parameters, the fixed positions not counted.

Hardware   not stated.
Expected   no figure.
Reached    not yet reached: not trained here.
"""

from configs import families


def get_config():
    return families.sit(512, patch_size=4, width=768, num_heads=12)
