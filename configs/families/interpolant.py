"""SiT: interpolants of latents."""

from ml_collections import ConfigDict

from configs.base import component
from configs.base import get_config as base


def sit(image_size: int, **network) -> ConfigDict:
    """SiT's training and sampling on the latents of ImageNet (Ma et al. 2024, arXiv:2401.08740).

    The data are the latents of the Stable-Diffusion autoencoder (--config.eval.autoencoder), an eighth of the image's
    side and scaled by 0.18215: --mode=encode makes them.

    network: what its arguments (score_flow/networks/sit.py) are where SiT-S/2 has others.
    """
    config = base()
    config.path = component("linear")
    config.network = component("sit", **network)
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
