"""NCSNv2 (64), VE, CIFAR-10 32 x 32 (Song and Ermon 2020, arXiv:2006.09011).

Source     score_sde, configs/ve/ncsnv2/cifar10.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_sde()
    config.path = component("ve", sigma_max=50.0, sigma_min=0.01)
    config.network = component("ncsnv2")
    config.model.ema_rate = (0.999,)
    config.model.input = "2x-1"
    config.model.prediction = "scaled_score"
    config.model.time = "1-t"
    config.model.time_scale = 231.0
    config.data.centered = False
    config.training.smallest_time = 0.0
    config.training.time_sampler = component("grid", closed=True, n=232)
    config.optim.grad_clip = -1.0
    config.optim.lr = 0.0001
    config.optim.warmup = 0
    config.sampling = component(
        "predictor_corrector",
        corrector="annealed_langevin",
        n_corrector_steps=5,
        n_steps=232,
        predictor="",
        snr=0.176,
        t_min=1e-5,
    )
    config.eval.begin_ckpt = 9
    config.eval.enable_sampling = False
    config.eval.end_ckpt = 26
    return config
