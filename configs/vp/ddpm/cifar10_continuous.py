"""DDPM cont., VP, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2011.13456, tables 2 and 3).

Source     score_sde, configs/vp/ddpm/cifar10_continuous.py.
Hardware   not stated.
Expected   bits/dim 3.21, FID by the probability flow 3.69.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_sde()
    config.path = component("vp", beta_max=20.0, beta_min=0.1)
    config.network = component("ddpm", dropout=0.1)
    config.model.prediction = "noise"
    config.training.reduce_mean = True
    config.sampling = component(
        "predictor_corrector", corrector="", n_corrector_steps=1, n_steps=1000, predictor="euler", snr=0.16, t_min=0.001
    )
    config.eval.begin_ckpt = 9
    config.eval.enable_sampling = False
    config.eval.end_ckpt = 26
    return config
