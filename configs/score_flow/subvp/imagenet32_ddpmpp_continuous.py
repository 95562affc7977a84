"""DDPM++ cont., sub-VP, ImageNet 32 x 32 (Song et al. 2021, arXiv:2101.09258, table 2).

Source     score_flow, configs/subvp/imagenet32_ddpmpp_continuous.py.
Hardware   not stated.
Expected   no figure without the likelihood weighting.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_flow()
    config.path = component("subvp", beta_max=20.0, beta_min=0.1)
    config.model.prediction = "noise"
    config.data.random_flip = False
    config.data.source = component("tfds", dataset="downsampled_imagenet/32x32")
    config.training.smallest_time = 0.01
    config.sampling = component("ode", atol=1e-5, method="dopri5", rtol=1e-5, t_max=1.0, t_min=0.01)
    config.eval.begin_ckpt = 26
    config.eval.end_ckpt = 26
    config.eval.num_repeats = 1
    return config
