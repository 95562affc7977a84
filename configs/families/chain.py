"""improved-diffusion: chains whose variances are learned."""

from ml_collections import ConfigDict

from configs.base import component
from configs.base import get_config as base


def improved_diffusion() -> ConfigDict:
    """improved-diffusion's defaults (Nichol and Dhariwal 2021, arXiv:2102.09672)."""
    config = base()
    config.model.ema_rate = (0.9999,)
    config.model.ema_warmup = False
    config.model.prediction = "noise"
    config.model.learn_sigma = True
    config.data.uniform_dequantization = False
    config.training.log_freq = 10
    config.training.snapshot_freq = 10_000
    config.training.smallest_time = 0.0
    config.optim.optimizer = "AdamW"
    config.optim.lr = 1e-4
    config.optim.warmup = 0
    config.optim.grad_clip = 0.0
    config.guidance.threshold = "static"  # their samplers clip x0 unless told not to
    return config


def iddpm(
    *,
    image_size: int,
    source: ConfigDict,
    network: ConfigDict,
    objective: str = "hybrid",
    n_steps: int = 4000,
    schedule: str = "cosine",
    lr: float = 1e-4,
) -> ConfigDict:
    """improved-diffusion without labels; the network is told the number of a step as if there were 1000."""
    config = improved_diffusion()
    config.path = component("ddpm", n=n_steps, schedule=schedule)
    config.network = network
    config.model.time_scale = 1000.0
    config.model.time_shift = -1000.0 / n_steps
    config.data.image_shape = (image_size, image_size, 3)
    config.data.source = source
    config.training.objective = objective
    config.training.time_sampler = component("loss_second_moment" if objective == "vlb" else "grid", n=n_steps)
    config.optim.lr = lr
    config.sampling = component("ancestral", n_steps=n_steps, t_min=0.0, variance="range")
    return config


def iddpm_lsun(*, lr: float) -> ConfigDict:
    """improved-diffusion on LSUN at 256 x 256, in the 1000 linear steps and by the blocks of DDPM."""
    network = component(
        "adm",
        attention_resolutions=(16,),
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_heads=1,
        num_heads_upsample=-1,
        num_res_blocks=2,
        scale_shift_norm=False,
    )
    source = component("folder", image_size=256)
    return iddpm(image_size=256, source=source, network=network, n_steps=1000, schedule="linear", lr=lr)


def iddpm_imagenet(
    *, image_size: int, network: ConfigDict, batch_size: int, schedule: str = "cosine", low_res: int = 0
) -> ConfigDict:
    """improved-diffusion on ImageNet with labels, sampled in 250 of its 4000 steps, of which the network is told."""
    source = component("folder", image_size=image_size)
    config = iddpm(image_size=image_size, source=source, network=network, schedule=schedule, lr=0.0003)
    config.model.class_conditional = True
    config.model.low_res = low_res
    config.model.time_scale = 4000.0
    config.model.time_shift = -1.0
    config.data.num_classes = 1000
    config.training.batch_size = batch_size
    config.training.vlb_weight = 0.00025
    config.sampling.respacing = "250"
    return config
