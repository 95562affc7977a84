"""Digits in one network call: a flow map (MeanFlow) of the size of configs/digits.py.

Model      As configs/digits.py, told of two times: an average velocity.
Expected   One call within 10 % of the Frechet distance of the same network's ODE.
"""

from configs.base import component
from configs.digits import get_config as digits


def get_config():
    config = digits()
    config.model.span = True
    config.model.time_scale = 10.0  # a derivative by time is taken: features of 999 t would be all of it
    config.training.objective = "flow_map"
    config.training.time_sampler = component("logit_normal", mean=-0.4, std=1.0)
    config.training.n_iters = 2000
    config.sampling = component("flow_map", n_steps=1)
    return config
