"""imagenet64_cond (Nichol and Dhariwal 2021, arXiv:2102.09672, tables 1 to 4).

273,049,350 parameters in the source. Its label table has no row for the null class: ours has one more.

Weights    https://openaipublic.blob.core.windows.net/diffusion/march-2021/imagenet64_cond_270M_250K.pt
Statistics --mode=stats makes them: its authors offer none.
Hardware   not stated.
Expected   FID 2.92 (250 000 steps, 250 steps of sampling).
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.iddpm_imagenet(
        image_size=64,
        network=component("adm", channel_mult=(1, 2, 3, 4), num_heads_upsample=-1, width=192),
        batch_size=2048,
    )
