"""NCSN++ cont., VP, CIFAR-10 32 x 32 (Song et al. 2021, arXiv:2011.13456).

Source     score_sde, configs/vp/cifar10_ncsnpp_continuous.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_sde()
    config.path = component("vp", beta_max=20.0, beta_min=0.1)
    config.network = component("ncsnpp", dropout=0.1, fir=True, progressive_input="residual")
    config.model.prediction = "noise"
    config.training.reduce_mean = True
    config.sampling = component(
        "predictor_corrector", corrector="", n_corrector_steps=1, n_steps=1000, predictor="euler", snr=0.16, t_min=0.001
    )
    config.eval.begin_ckpt = 9
    config.eval.enable_sampling = False
    config.eval.end_ckpt = 26
    return config
