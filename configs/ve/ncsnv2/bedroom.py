"""NCSNv2 (128), VE, LSUN bedroom 128 x 128 (Song and Ermon 2020, arXiv:2006.09011).

Source     score_sde, configs/ve/ncsnv2/bedroom.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_sde()
    config.path = component("ve", sigma_max=190.0, sigma_min=0.01)
    config.network = component("ncsnv2", resolution=128)
    config.model.input = "2x-1"
    config.model.prediction = "scaled_score"
    config.model.time = "1-t"
    config.model.time_scale = 1085.0
    config.data.centered = False
    config.data.image_shape = (128, 128, 3)
    config.data.source = component("folder", image_size=128)
    config.training.n_iters = 2_400_001
    config.training.smallest_time = 0.0
    config.training.snapshot_freq_for_preemption = 5000
    config.training.time_sampler = component("grid", closed=True, n=1086)
    config.optim.grad_clip = -1.0
    config.optim.lr = 0.0001
    config.optim.warmup = 0
    config.sampling = component(
        "predictor_corrector",
        corrector="annealed_langevin",
        n_corrector_steps=3,
        n_steps=1086,
        predictor="",
        snr=0.095,
        t_min=1e-5,
    )
    config.eval.batch_size = 512
    config.eval.begin_ckpt = 50
    config.eval.end_ckpt = 96
    return config
