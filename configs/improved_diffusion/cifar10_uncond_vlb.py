"""cifar10_uncond_vlb (Nichol and Dhariwal 2021, arXiv:2102.09672, tables 1 to 4).

52,546,438 parameters in the source.

Hardware   not stated.
Expected   2.94 bits/dim, FID 11.47 (500 000 steps).
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.improved_diffusion()
    config.path = component("ddpm", n=4000, schedule="cosine")
    config.network = component("adm", dropout=0.3, num_heads_upsample=-1)
    config.model.time_scale = 1000.0
    config.model.time_shift = -0.25
    config.data.image_shape = (32, 32, 3)
    config.data.source = component("tfds", dataset="cifar10")
    config.training.objective = "vlb"
    config.training.time_sampler = component("loss_second_moment", n=4000)
    config.sampling = component("ancestral", n_steps=4000, t_min=0.0, variance="range")
    return config
