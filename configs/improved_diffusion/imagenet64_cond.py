"""imagenet64_cond (Nichol and Dhariwal 2021, arXiv:2102.09672, tables 1 to 4).

273,049,350 parameters in the source. Its label table has no row for the null class: ours has one more.

Hardware   not stated.
Expected   FID 2.92 (250 000 steps, 250 steps of sampling).
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.improved_diffusion()
    config.path = component("ddpm", n=4000, schedule="cosine")
    config.network = component("adm", channel_mult=(1, 2, 3, 4), num_heads_upsample=-1, width=192)
    config.model.class_conditional = True
    config.model.time_scale = 4000.0
    config.model.time_shift = -1.0
    config.data.image_shape = (64, 64, 3)
    config.data.num_classes = 1000
    config.data.source = component("folder", image_size=64)
    config.training.batch_size = 2048
    config.training.objective = "hybrid"
    config.training.time_sampler = component("grid", n=4000)
    config.training.vlb_weight = 0.00025
    config.optim.lr = 0.0003
    config.sampling = component("ancestral", n_steps=4000, t_min=0.0, variance="range", respacing="250")
    return config
