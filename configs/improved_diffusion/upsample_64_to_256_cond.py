"""upsample_64_to_256_cond (Nichol and Dhariwal 2021, arXiv:2102.09672, tables 1 to 4).

279,792,390 parameters in the source. Its label table has no row for the null class: ours has one more.

Hardware   not stated.
Expected   no figure.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.improved_diffusion()
    config.path = component("ddpm", n=4000, schedule="linear")
    config.network = component(
        "adm", channel_mult=(1, 1, 2, 2, 4, 4), num_heads_upsample=-1, num_res_blocks=2, width=192
    )
    config.model.class_conditional = True
    config.model.low_res = 64
    config.model.time_scale = 4000.0
    config.model.time_shift = -1.0
    config.data.image_shape = (256, 256, 3)
    config.data.num_classes = 1000
    config.data.source = component("folder", image_size=256)
    config.training.batch_size = 256
    config.training.objective = "hybrid"
    config.training.time_sampler = component("grid", n=4000)
    config.training.vlb_weight = 0.00025
    config.optim.lr = 0.0003
    config.sampling = component("ancestral", n_steps=4000, t_min=0.0, variance="range", respacing="250")
    return config
