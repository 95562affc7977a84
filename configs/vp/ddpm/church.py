"""DDPM, VP, LSUN church_outdoor 256 x 256 (Ho et al. 2020, arXiv:2006.11239).

Source     score_sde, configs/vp/ddpm/church.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_sde()
    config.path = component("ddpm", beta_max=20.0, beta_min=0.1, n=1000, schedule="linear")
    config.network = component("ddpm", channel_mult=(1, 1, 2, 2, 4, 4))
    config.model.prediction = "noise"
    config.model.time_scale = 1000.0
    config.model.time_shift = -1.0
    config.data.image_shape = (256, 256, 3)
    config.data.source = component("folder", image_size=256)
    config.training.batch_size = 64
    config.training.n_iters = 2_400_001
    config.training.reduce_mean = True
    config.training.smallest_time = 0.0
    config.training.snapshot_freq_for_preemption = 5000
    config.training.time_sampler = component("grid", n=1000)
    config.optim.lr = 2e-5
    config.sampling = component(
        "predictor_corrector",
        corrector="",
        n_corrector_steps=1,
        n_steps=1000,
        predictor="ancestral",
        snr=0.075,
        t_min=0.0,
    )
    config.eval.batch_size = 512
    config.eval.begin_ckpt = 50
    config.eval.end_ckpt = 96
    return config
