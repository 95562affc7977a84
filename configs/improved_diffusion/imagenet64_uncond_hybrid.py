"""imagenet64_uncond_hybrid (Nichol and Dhariwal 2021, arXiv:2102.09672, tables 1 to 4).

121,063,942 parameters in the source.

Weights    https://openaipublic.blob.core.windows.net/diffusion/march-2021/imagenet64_uncond_100M_1500K.pt
Statistics --mode=stats makes them: its authors offer none.
Hardware   not stated.
Expected   3.57 bits/dim, FID 19.2 (1.5 M steps).
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.iddpm(
        image_size=64,
        source=component("tfds", dataset="downsampled_imagenet/64x64"),
        network=component("adm", channel_mult=(1, 2, 3, 4), num_heads_upsample=-1),
        objective="hybrid",
    )
