"""EDM2 on ImageNet: pixels at 64, latents of Stable Diffusion's autoencoder at 512."""

from ml_collections import ConfigDict

from configs.base import component
from configs.base import get_config as base

BATCH = 2048


def edm2(image_size: int, *, width: int, images: int, lr: float, dropout: float = 0.0) -> ConfigDict:
    """EDM2's training at 64 or 512 (Karras et al. 2024, arXiv:2312.02696, table 6), of so many times 2^20 images.

    At 512 the data are latents 64 x 64 x 4, scaled to a standard deviation of 1/2 a channel: --mode=encode makes them.
    Noise levels are those of the path, .002 to 80, between which theirs, a lognormal law, has all but a thousandth; in
    sampling 32 steps are between these, theirs are 31 and one to 0. Of their averages, ema_std = .05 and .1, any width
    is made afterwards (eval.ema_std).
    """
    config = base()
    pixels = image_size == 64
    config.path = component("ve", sigma_min=0.002, sigma_max=80.0)
    config.network = component("edm2", width=width, dropout=dropout)
    config.model.prediction = "edm"
    config.model.input = "unit_variance"
    config.model.time = "log_sigma"
    config.model.time_scale = 0.25
    config.model.class_conditional = True
    config.model.ema_std = (0.05, 0.1)
    config.data.source = component("folder", image_size=64) if pixels else component("latents")
    config.data.image_shape = (64, 64, 3 if pixels else 4)
    config.data.num_classes = 1000
    config.data.uniform_dequantization = False
    config.training.batch_size = BATCH
    config.training.n_iters = (images << 20) // BATCH
    config.training.objective = "uncertainty"
    config.training.weighting = "edm"
    law = {"mean": -0.8, "std": 1.6} if pixels else {"mean": -0.4, "std": 1.0}
    config.training.time_sampler = component("lognormal", **law)
    config.training.smallest_time = 0.0
    config.optim.lr = lr
    config.optim.beta2 = 0.99
    config.optim.warmup = round(10_000_000 / BATCH)
    config.optim.schedule = "inverse_sqrt"
    config.optim.decay_start = 35_000 if pixels else 70_000
    config.optim.grad_clip = 0.0
    config.sampling = component("heun", t_min=0.0, n_steps=32, grid="karras")
    config.eval.num_samples = 50_000
    config.eval.enable_bpd = False
    return config
