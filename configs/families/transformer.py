"""Transformers with later parts: JiT on pixels, LightningDiT on latents."""

from ml_collections import ConfigDict

from configs.base import component
from configs.base import get_config as base

IMAGES = 1_281_167  # of ImageNet


def _imagenet(epochs: int) -> ConfigDict:
    """What both trainings share: classes of ImageNet, time from noise to data, batches of 1 024, their AdamW."""
    config = base()
    config.model.time = "1-t"
    config.model.time_scale = 1.0
    config.model.class_conditional = True
    config.model.ema_warmup = False
    config.data.num_classes = 1000
    config.data.uniform_dequantization = False
    config.training.batch_size = 1024
    config.training.n_iters = epochs * (IMAGES // 1024)
    config.training.log_freq = 100
    config.training.smallest_time = 0.0
    config.training.label_dropout = 0.1
    config.optim.optimizer = "AdamW"
    config.optim.lr = 2e-4
    config.optim.beta2 = 0.95
    config.optim.grad_clip = 0.0
    config.eval.num_samples = 50_000
    config.eval.enable_bpd = False
    return config


def jit(image_size: int, *, guidance: float, epochs: int = 600, **network) -> ConfigDict:
    """JiT's training on the pixels of ImageNet (Li and He 2025, arXiv:2511.13720): x0, weighted as velocities.

    Their sampler divides by no time below 0.05, so that its last two steps end before the data; ours ends at the data.

    network: what its arguments (score_flow/networks/dit.py) are where JiT-B has others.
    """
    config = _imagenet(epochs)
    shape = {"patch_size": image_size // 16, "width": 768, "depth": 12, "num_heads": 12, "bottleneck": 128}
    tokens = {"class_tokens": 32, "context_start": 4, "dropout_blocks": "middle"}
    config.path = component("linear", noise_scale=image_size / 256)
    config.network = component("dit", **shape | tokens | network)
    config.model.prediction = "data"
    config.model.ema_rate = (0.9999, 0.9996)
    config.data.image_shape = (image_size, image_size, 3)
    config.data.source = component("folder", image_size=image_size)
    config.data.random_flip = True
    config.training.weighting = "clipped_velocity"
    config.training.time_sampler = component("logit_normal", mean=0.8, std=0.8)
    config.optim.warmup = 5 * (IMAGES // 1024)
    config.guidance.scale = guidance
    config.guidance.interval = (0.0, 0.9)
    config.sampling = component("heun", t_min=0.0, n_steps=50, grid="uniform")
    return config


def lightningdit(image_size: int, *, epochs: int, **network) -> ConfigDict:
    """LightningDiT's training on the latents of VA-VAE f16d32 (Yao et al. 2025, arXiv:2501.01423).

    The data are latents of 1/16 of the image's side and 32 channels, each normalised by its mean and standard deviation
    over the data: --mode=encode makes them.

    network: what its arguments (score_flow/networks/dit.py) are where LightningDiT-XL/1 has others.
    """
    config = _imagenet(epochs)
    shape = {"patch_size": 1, "width": 1152, "depth": 28, "num_heads": 16, "qk_norm": False}
    config.path = component("linear")
    config.network = component("dit", **shape | network)
    config.model.prediction = "velocity"
    config.model.ema_rate = (0.9999,)
    config.data.image_shape = (image_size // 16, image_size // 16, 32)
    config.data.source = component("latents")
    config.training.weighting = "velocity"
    config.training.cosine = 1.0
    config.training.time_sampler = component("logit_normal")
    config.optim.warmup = 0
    config.sampling = component("ode", t_min=0.0, method="euler", n_steps=250)
    return config
