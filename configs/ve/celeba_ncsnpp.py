"""NCSN++, VE, CelebA 64 x 64 (Song et al. 2021, arXiv:2011.13456).

Source     score_sde, configs/ve/celeba_ncsnpp.py.
Hardware   not stated.
Expected   FID about 2.5 (the author, in an answer).
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_sde()
    config.path = component("ve", sigma_max=90.0, sigma_min=0.01)
    config.network = component("ncsnpp", dropout=0.1, fir=True, progressive_input="residual")
    config.model.ema_rate = (0.999,)
    config.model.input = "2x-1"
    config.model.prediction = "scaled_score"
    config.model.time = "1-t"
    config.data.centered = False
    config.data.image_shape = (64, 64, 3)
    config.data.source = component("folder", image_size=64)
    config.training.smallest_time = 0.0
    config.training.time_sampler = component("grid", closed=True, n=1000)
    config.sampling = component(
        "predictor_corrector",
        corrector="langevin",
        n_corrector_steps=1,
        n_steps=1000,
        predictor="reverse_diffusion",
        snr=0.17,
        t_min=1e-5,
    )
    config.eval.begin_ckpt = 1
    config.eval.end_ckpt = 26
    return config
