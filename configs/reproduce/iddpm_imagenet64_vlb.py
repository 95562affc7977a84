"""ImageNet 64 x 64, improved-diffusion's imagenet64_uncond_vlb: 3.53 bits/dim.

Source     abstract of Nichol and Dhariwal 2021, arXiv:2102.09672.
Weights    imagenet64_uncond_vlb, the published EMA.
"""

from configs.reproduce.rows import chain_bound, evaluated

get_config = evaluated("improved_diffusion/imagenet64_uncond_vlb", chain_bound)
expected = {"vlb.bits_per_dim": (3.53, 0.02)}
