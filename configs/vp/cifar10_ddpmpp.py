"""DDPM++, VP, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2011.13456, tables 2 and 3).

Source     score_sde, configs/vp/cifar10_ddpmpp.py.
Hardware   not stated.
Expected   FID 2.78, IS 9.64.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_sde()
    config.path = component("ddpm", beta_max=20.0, beta_min=0.1, n=1000, schedule="linear")
    config.network = component("ncsnpp", dropout=0.1)
    config.model.prediction = "noise"
    config.model.time_scale = 1000.0
    config.model.time_shift = -1.0
    config.training.reduce_mean = True
    config.training.smallest_time = 0.0
    config.training.time_sampler = component("grid", n=1000)
    config.sampling = component(
        "predictor_corrector",
        corrector="",
        n_corrector_steps=1,
        n_steps=1000,
        predictor="ancestral",
        snr=0.16,
        t_min=0.0,
    )
    config.eval.begin_ckpt = 9
    config.eval.enable_sampling = False
    config.eval.end_ckpt = 26
    return config
