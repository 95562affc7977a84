"""CIFAR-10's bits/dim: the variational diffusion model of Kingma et al. 2021, arXiv:2107.00630.

Model      VDM's U-Net without downsampling (30.6 M parameters), noise prediction on a linear log SNR, 13.3 to -5. Its
           weights' own schedule learned both ends; here they are fixed, as i-DODE (arXiv:2305.03935) fixes them.
Hardware   8 TPU v3 cores, 10 M steps.
Expected   2.65 bits/dim, by the variational bound of continuous time (i-DODE's training of the same network: 2.56).
Reached    not yet reached: not trained here.
Yours      --config.eval.jobs="('vlb',)" --config.eval.vlb_steps=1000 bounds the bits/dim of the levels;
           --config.eval.dequantizer=truncated_normal integrates the flow.
"""

from configs.base import component
from configs.base import get_config as base


def get_config():
    config = base()
    config.path = component("log_snr", log_snr_max=13.3, log_snr_min=-5.0)
    config.network = component("vdm", dropout=0.1)
    config.data.source = component("cifar10")
    config.data.image_shape = (32, 32, 3)
    config.data.uniform_dequantization = False

    config.model.prediction = "noise"
    config.model.time_scale = 1000.0  # t is gamma carried to [0, 1]
    config.model.ema_rate = (0.9999,)
    config.model.ema_warmup = False

    config.training.time_sampler = component("stratified")  # of noise on this path: the bound's own weighting
    config.training.smallest_time = 0.0
    config.training.batch_size = 128
    config.training.n_iters = 10_000_000
    config.training.log_freq = 1000
    config.training.eval_freq = 10_000
    config.training.snapshot_freq = 100_000
    config.training.snapshot_freq_for_preemption = 10_000

    config.optim.optimizer = "AdamW"
    config.optim.lr = 2e-4
    config.optim.beta2 = 0.99
    config.optim.weight_decay = 0.01
    config.optim.warmup = 100
    config.optim.grad_clip = 0.0

    config.eval.smallest_time = 0.0
    config.eval.enable_sampling = False
    return config
