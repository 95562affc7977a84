"""upsample_64_to_256_cond (Nichol and Dhariwal 2021, arXiv:2102.09672, tables 1 to 4).

279,792,390 parameters in the source. Its label table has no row for the null class: ours has one more.

Weights    https://openaipublic.blob.core.windows.net/diffusion/march-2021/upsample_cond_500K.pt
Statistics --mode=stats makes them: its authors offer none.
Hardware   not stated.
Expected   no figure.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.iddpm_imagenet(
        image_size=256,
        network=component("adm", channel_mult=(1, 1, 2, 2, 4, 4), num_heads_upsample=-1, num_res_blocks=2, width=192),
        batch_size=256,
        schedule="linear",
        low_res=64,
    )
