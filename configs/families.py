"""What the recipes of one project share; not a recipe by itself."""

from ml_collections import ConfigDict

from configs.base import component
from configs.base import get_config as base


def score_sde() -> ConfigDict:
    """score_sde's defaults for every data set (Song et al. 2021, arXiv:2011.13456)."""
    config = base()
    config.seed = 42
    config.model.ema_rate = (0.9999,)
    config.model.ema_warmup = False
    config.data.random_flip = True
    config.data.uniform_dequantization = False
    config.data.image_shape = (32, 32, 3)
    config.data.source = component("tfds", dataset="cifar10")
    config.training.batch_size = 128
    config.training.n_iters = 1_300_001
    config.training.n_jitted_steps = 5
    config.training.log_freq = 50
    config.training.eval_freq = 100
    config.training.snapshot_freq = 50_000
    config.training.snapshot_freq_for_preemption = 10_000
    config.training.reduce_mean = False
    config.eval.batch_size = 1024
    config.eval.num_samples = 50_000
    config.eval.enable_bpd = False
    return config


def score_flow() -> ConfigDict:
    """score_flow's defaults (Song et al. 2021, arXiv:2101.09258): score_sde's, judged by bits/dim."""
    config = score_sde()
    config.training.log_freq = 100
    config.training.reduce_mean = True
    config.eval.enable_loss = False
    config.eval.enable_sampling = False
    config.eval.enable_bpd = True
    config.eval.num_repeats = 5
    return config


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


def sit(image_size: int) -> ConfigDict:
    """SiT's training and sampling on the latents of ImageNet (Ma et al. 2024, arXiv:2401.08740).

    The data are the latents of the Stable-Diffusion autoencoder (--config.eval.autoencoder), an eighth of the image's
    side and scaled by 0.18215: --mode=encode makes them.
    """
    config = base()
    config.path = component("linear")
    config.model.prediction = "velocity"
    config.model.time = "1-t"
    config.model.time_scale = 1.0
    config.model.class_conditional = True
    config.model.learn_sigma = True
    config.model.ema_rate = (0.9999,)
    config.model.ema_warmup = False
    config.data.image_shape = (image_size // 8, image_size // 8, 4)
    config.data.num_classes = 1000
    config.data.source = component("latents")
    config.data.uniform_dequantization = False
    config.training.batch_size = 256
    config.training.n_iters = 7_005_600
    config.training.log_freq = 100
    config.training.weighting = "velocity"
    config.training.smallest_time = 0.0
    config.training.label_dropout = 0.1
    config.optim.optimizer = "AdamW"
    config.optim.lr = 1e-4
    config.optim.warmup = 0
    config.optim.grad_clip = 0.0
    # 250 steps of the SDE of table 1 there: Euler, their w = sigma, a last step of .04 to the mean.
    config.sampling = component(
        "sde", t_min=0.04, n_steps=249, diffusion="sigma", norm=1.0, last_step="mean", last_step_size=0.04
    )
    config.eval.num_samples = 50_000
    config.eval.enable_bpd = False
    return config
