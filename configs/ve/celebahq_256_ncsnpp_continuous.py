"""NCSN++ cont., VE, CelebA-HQ 256 x 256 (Song et al. 2021, arXiv:2011.13456).

Source     score_sde, configs/ve/celebahq_256_ncsnpp_continuous.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    config = families.score_sde()
    config.path = component("ve", sigma_max=348.0, sigma_min=0.01)
    config.network = component(
        "ncsnpp",
        channel_mult=(1, 1, 2, 2, 2, 2, 2),
        embedding="fourier",
        fir=True,
        num_res_blocks=2,
        progressive="output_skip",
        progressive_input="input_skip",
    )
    config.model.ema_rate = (0.999,)
    config.model.input = "2x-1"
    config.model.prediction = "scaled_score"
    config.model.time = "log_sigma"
    config.model.time_scale = 1.0
    config.data.centered = False
    config.data.image_shape = (256, 256, 3)
    config.data.source = component("folder", image_size=256)
    config.training.batch_size = 64
    config.training.n_iters = 2_400_001
    config.training.snapshot_freq_for_preemption = 5000
    config.sampling = component(
        "predictor_corrector",
        corrector="langevin",
        n_corrector_steps=1,
        n_steps=2000,
        predictor="reverse_diffusion",
        snr=0.075,
        t_min=1e-5,
    )
    config.eval.batch_size = 512
    config.eval.begin_ckpt = 50
    config.eval.end_ckpt = 96
    return config
