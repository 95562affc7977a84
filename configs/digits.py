from configs.base import component
from configs.base import get_config as base


def get_config():
    config = base()
    config.path = component("linear")
    config.network = component("sit", patch_size=1, width=64, depth=4, num_heads=4)
    config.training.n_iters = 200
    config.optim.warmup = 100
    config.optim.lr = 1e-3
    return config
