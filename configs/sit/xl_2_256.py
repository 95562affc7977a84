"""SiT-XL/2, linear path, velocity, ImageNet 256 x 256 in latents (Ma et al. 2024, arXiv:2401.08740, table 1).

674,834,720 parameters, the fixed positions not counted.

Hardware   not stated.
Expected   FID 2.06, IS 270.27 (SDE), 2.15 (ODE) at guidance 1.5; 8.3 without guidance after 7 M steps.
Reached    not yet reached: not trained here.
"""

from configs import families


def get_config():
    return families.sit(256, width=1152, depth=28, num_heads=16)
