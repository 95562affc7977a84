"""cifar10_uncond_vlb (Nichol and Dhariwal 2021, arXiv:2102.09672, tables 1 to 4).

52,546,438 parameters in the source.

Weights    https://openaipublic.blob.core.windows.net/diffusion/march-2021/cifar10_uncond_vlb_50M_500K.pt
Statistics --mode=stats makes them: its authors offer none.
Hardware   not stated.
Expected   2.94 bits/dim, FID 11.47 (500 000 steps).
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.iddpm(
        image_size=32,
        source=component("tfds", dataset="cifar10"),
        network=component("adm", dropout=0.3, num_heads_upsample=-1),
        objective="vlb",
    )
