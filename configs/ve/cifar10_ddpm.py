"""DDPM, VE, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2011.13456).

Source     score_sde, configs/ve/cifar10_ddpm.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_sde()
    config.path = component("ve", sigma_max=50.0, sigma_min=0.01)
    config.network = component("ddpm", dropout=0.1)
    config.model.ema_rate = (0.999,)
    config.model.input = "2x-1"
    config.model.prediction = "scaled_score"
    config.model.time = "1-t"
    config.data.centered = False
    config.training.smallest_time = 0.0
    config.training.time_sampler = component("grid", closed=True, n=1000)
    config.sampling = component(
        "predictor_corrector",
        corrector="langevin",
        n_corrector_steps=1,
        n_steps=1000,
        predictor="reverse_diffusion",
        snr=0.16,
        t_min=1e-5,
    )
    config.eval.begin_ckpt = 9
    config.eval.enable_sampling = False
    config.eval.end_ckpt = 26
    return config
