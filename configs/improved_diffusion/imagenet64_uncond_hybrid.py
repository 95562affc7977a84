"""imagenet64_uncond_hybrid (Nichol and Dhariwal 2021, arXiv:2102.09672, tables 1 to 4).

121,063,942 parameters in the source.

Hardware   not stated.
Expected   3.57 bits/dim, FID 19.2 (1.5 M steps).
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.improved_diffusion()
    config.path = component("ddpm", n=4000, schedule="cosine")
    config.network = component("adm", channel_mult=(1, 2, 3, 4), num_heads_upsample=-1)
    config.model.time_scale = 1000.0
    config.model.time_shift = -0.25
    config.data.image_shape = (64, 64, 3)
    config.data.source = component("tfds", dataset="downsampled_imagenet/64x64")
    config.training.objective = "hybrid"
    config.training.time_sampler = component("grid", n=4000)
    config.sampling = component("ancestral", n_steps=4000, t_min=0.0, variance="range")
    return config
