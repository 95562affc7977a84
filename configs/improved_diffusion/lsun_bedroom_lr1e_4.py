"""lsun_bedroom_lr1e-4 (Nichol and Dhariwal 2021, arXiv:2102.09672, tables 1 to 4).

113,676,678 parameters in the source.

Hardware   not stated.
Expected   no figure.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.improved_diffusion()
    config.path = component("ddpm", n=1000, schedule="linear")
    config.network = component(
        "adm",
        attention_resolutions=(16,),
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_heads=1,
        num_heads_upsample=-1,
        num_res_blocks=2,
        scale_shift_norm=False,
    )
    config.model.time_scale = 1000.0
    config.model.time_shift = -1.0
    config.data.image_shape = (256, 256, 3)
    config.data.source = component("folder", image_size=256)
    config.training.objective = "hybrid"
    config.training.time_sampler = component("grid", n=1000)
    config.sampling = component("ancestral", n_steps=1000, t_min=0.0, variance="range")
    return config
