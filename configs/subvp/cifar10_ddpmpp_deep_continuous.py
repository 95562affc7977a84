"""DDPM++ cont. deep, sub-VP, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2011.13456, tables 2 and 3).

Source     score_sde, configs/subvp/cifar10_ddpmpp_deep_continuous.py.
Hardware   not stated.
Expected   FID 2.41, IS 9.57, bits/dim 2.99, FID by the probability flow 2.92.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_sde()
    config.path = component("subvp", beta_max=20.0, beta_min=0.1)
    config.network = component("ncsnpp", dropout=0.1, num_res_blocks=8)
    config.model.prediction = "noise"
    config.training.n_iters = 950_001
    config.training.reduce_mean = True
    config.sampling = component(
        "predictor_corrector", corrector="", n_corrector_steps=1, n_steps=1000, predictor="euler", snr=0.16, t_min=0.001
    )
    config.eval.begin_ckpt = 9
    config.eval.enable_sampling = False
    config.eval.end_ckpt = 26
    return config
