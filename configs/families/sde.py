"""score_sde and score_flow: data sets, and processes that complete the config of one, `vp(cifar10(), network=...)`.

Those of score_sde expect a data set of score_sde, which says how strongly the corrector acts.
"""

from ml_collections import ConfigDict

from configs.base import component
from configs.base import get_config as base


def score_sde() -> ConfigDict:
    """score_sde's defaults for every data set (Song et al. 2021, arXiv:2011.13456)."""
    config = base()
    config.seed = 42
    config.model.ema_rate = (0.9999,)
    config.model.ema_warmup = False
    config.data.random_flip = True
    config.data.uniform_dequantization = False
    config.data.image_shape = (32, 32, 3)
    config.data.source = component("tfds", dataset="cifar10")
    config.training.batch_size = 128
    config.training.n_iters = 1_300_001
    config.training.n_jitted_steps = 5
    config.training.log_freq = 50
    config.training.eval_freq = 100
    config.training.snapshot_freq = 50_000
    config.training.snapshot_freq_for_preemption = 10_000
    config.training.reduce_mean = False
    config.eval.batch_size = 1024
    config.eval.num_samples = 50_000
    config.eval.enable_bpd = False
    return config


def cifar10(*, n_iters: int = 1_300_001) -> ConfigDict:
    """score_sde's defaults for CIFAR-10; samples are drawn in training only."""
    config = score_sde()
    config.training.n_iters = n_iters
    config.sampling = component("predictor_corrector", snr=0.16)
    config.eval.begin_ckpt = 9
    config.eval.end_ckpt = 26
    config.eval.enable_sampling = False
    return config


def celeba() -> ConfigDict:
    """score_sde's defaults for CelebA, a folder of images of 64 x 64."""
    config = score_sde()
    config.data.image_shape = (64, 64, 3)
    config.data.source = component("folder", image_size=64)
    config.sampling = component("predictor_corrector", snr=0.17)
    config.eval.begin_ckpt = 1
    config.eval.end_ckpt = 26
    return config


def lsun(*, image_size: int = 256, batch_size: int = 64) -> ConfigDict:
    """score_sde's defaults for LSUN, CelebA-HQ and FFHQ, a folder of images."""
    config = score_sde()
    config.data.image_shape = (image_size, image_size, 3)
    config.data.source = component("folder", image_size=image_size)
    config.training.batch_size = batch_size
    config.training.n_iters = 2_400_001
    config.training.snapshot_freq_for_preemption = 5000
    config.sampling = component("predictor_corrector", snr=0.075)
    config.eval.batch_size = 512
    config.eval.begin_ckpt = 50
    config.eval.end_ckpt = 96
    return config


def vp(data: ConfigDict, *, network: ConfigDict) -> ConfigDict:
    """score_sde's VP at all times, sampled by Euler-Maruyama."""
    config = _noise(data, "vp", network)
    config.sampling.update(corrector="", n_corrector_steps=1, n_steps=1000, predictor="euler", t_min=0.001)
    return config


def subvp(data: ConfigDict, *, network: ConfigDict) -> ConfigDict:
    """score_sde's sub-VP, trained and sampled as its VP."""
    config = vp(data, network=network)
    config.path.name = "subvp"
    return config


def vp_discrete(data: ConfigDict, *, network: ConfigDict, predictor: str = "ancestral") -> ConfigDict:
    """score_sde's VP at the 1000 times of DDPM (Ho et al. 2020, arXiv:2006.11239), sampled by as many steps."""
    config = _noise(data, "ddpm", network)
    config.path.update(n=1000, schedule="linear")
    config.model.time_scale = 1000.0
    config.model.time_shift = -1.0
    config.training.smallest_time = 0.0
    config.training.time_sampler = component("grid", n=1000)
    config.sampling.update(corrector="", n_corrector_steps=1, n_steps=1000, predictor=predictor, t_min=0.0)
    return config


def ddpm_256() -> ConfigDict:
    """score_sde's DDPM on images of 256 x 256."""
    config = vp_discrete(lsun(), network=component("ddpm", channel_mult=(1, 1, 2, 2, 4, 4)))
    config.optim.lr = 2e-5
    return config


def _noise(config: ConfigDict, path: str, network: ConfigDict) -> ConfigDict:
    """What VP and sub-VP share, of both projects: the network predicts the noise."""
    config.path = component(path, beta_max=20.0, beta_min=0.1)
    config.network = network
    config.model.prediction = "noise"
    config.training.reduce_mean = True
    return config


def ve(
    data: ConfigDict, *, network: ConfigDict, sigma_max: float = 50.0, n_steps: int = 1000, ema_rate: float = 0.999
) -> ConfigDict:
    """score_sde's VE at all times, of which the network is told log(sigma)."""
    config = _scaled_score(data, network, sigma_max=sigma_max, n_steps=n_steps, ema_rate=ema_rate)
    config.model.time = "log_sigma"
    config.model.time_scale = 1.0
    return config


def ve_256(*, sigma_max: float) -> ConfigDict:
    """score_sde's VE on images of 256 x 256."""
    network = _ncsnpp_with_skips(channel_mult=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2)
    return ve(lsun(), network=network, sigma_max=sigma_max, n_steps=2000)


def ve_1024(*, reduce_mean: bool = False) -> ConfigDict:
    """score_sde's VE on images of 1024 x 1024."""
    network = _ncsnpp_with_skips(channel_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1, width=16)
    data = lsun(image_size=1024, batch_size=8)
    config = ve(data, network=network, sigma_max=1348.0, n_steps=2000, ema_rate=0.9999)
    config.training.n_jitted_steps = 1
    config.training.reduce_mean = reduce_mean
    config.sampling.snr = 0.15
    config.eval.batch_size = 1024
    config.eval.begin_ckpt = 1
    config.eval.enable_bpd = True
    return config


def ve_discrete(
    data: ConfigDict, *, network: ConfigDict, sigma_max: float = 50.0, n_scales: int = 1000, ema_rate: float = 0.999
) -> ConfigDict:
    """score_sde's VE at n_scales sigmas, whose numbers, from the largest down, the network is told."""
    config = _scaled_score(data, network, sigma_max=sigma_max, n_steps=n_scales, ema_rate=ema_rate)
    config.model.time = "1-t"
    config.model.time_scale = n_scales - 1.0
    config.training.smallest_time = 0.0
    config.training.time_sampler = component("grid", closed=True, n=n_scales)
    return config


def ncsnv2(
    data: ConfigDict,
    *,
    network: ConfigDict,
    sigma_max: float,
    n_scales: int,
    n_corrector_steps: int,
    snr: float,
    ema_rate: float = 0.999,
) -> ConfigDict:
    """NCSNv2 (Song and Ermon 2020, arXiv:2006.09011) in score_sde, sampled by annealed Langevin steps alone."""
    config = ve_discrete(data, network=network, sigma_max=sigma_max, n_scales=n_scales, ema_rate=ema_rate)
    config.optim.grad_clip = -1.0
    config.optim.lr = 0.0001
    config.optim.warmup = 0
    config.sampling.update(corrector="annealed_langevin", n_corrector_steps=n_corrector_steps, predictor="", snr=snr)
    return config


def ncsn(
    data: ConfigDict,
    *,
    network: ConfigDict,
    ema_rate: float,
    sigma_max: float = 1.0,
    n_scales: int = 10,
    n_corrector_steps: int = 100,
    snr: float = 0.316,
) -> ConfigDict:
    """NCSN (Song and Ermon 2019, arXiv:1907.05600) in score_sde; by default with the sigmas and steps of the paper."""
    levels = {"sigma_max": sigma_max, "n_scales": n_scales, "n_corrector_steps": n_corrector_steps, "snr": snr}
    config = ncsnv2(data, network=network, ema_rate=ema_rate, **levels)
    config.model.prediction = "score"
    config.optim.lr = 0.001
    return config


def _scaled_score(
    config: ConfigDict, network: ConfigDict, *, sigma_max: float, n_steps: int, ema_rate: float
) -> ConfigDict:
    """What `ve` and `ve_discrete` share: the network predicts sigma times the score, a corrector helps."""
    config.path = component("ve", sigma_max=sigma_max, sigma_min=0.01)
    config.network = network
    config.model.ema_rate = (ema_rate,)
    config.model.input = "2x-1"
    config.model.prediction = "scaled_score"
    config.data.centered = False
    config.sampling.update(
        corrector="langevin", n_corrector_steps=1, n_steps=n_steps, predictor="reverse_diffusion", t_min=1e-5
    )
    return config


def _ncsnpp_with_skips(**arguments) -> ConfigDict:
    """NCSN++ for large images, which enter and leave at every resolution."""
    skips = {"progressive": "output_skip", "progressive_input": "input_skip"}
    return component("ncsnpp", embedding="fourier", fir=True, **skips, **arguments)


def score_flow(*, n_iters: int = 1_300_001) -> ConfigDict:
    """score_flow's defaults (Song et al. 2021, arXiv:2101.09258): score_sde's, judged by bits/dim."""
    config = score_sde()
    config.training.n_iters = n_iters
    config.training.log_freq = 100
    config.training.reduce_mean = True
    config.eval.enable_loss = False
    config.eval.enable_sampling = False
    config.eval.enable_bpd = True
    config.eval.num_repeats = 5
    return config


def imagenet32(*, n_iters: int = 1_300_001) -> ConfigDict:
    """score_flow's defaults for ImageNet of 32 x 32."""
    config = score_flow(n_iters=n_iters)
    config.data.random_flip = False
    config.data.source = component("tfds", dataset="downsampled_imagenet/32x32")
    config.eval.num_repeats = 1
    return config


def score_flow_vp(data: ConfigDict, *, network: ConfigDict) -> ConfigDict:
    """score_flow's VP, sampled by its ODE; the last milestone is evaluated."""
    config = _noise(data, "vp", network)
    config.sampling = component("ode", atol=1e-5, method="dopri5", rtol=1e-5, t_max=1.0, t_min=0.001)
    config.eval.begin_ckpt = config.eval.end_ckpt = config.training.n_iters // config.training.snapshot_freq
    return config


def score_flow_subvp(data: ConfigDict, *, network: ConfigDict) -> ConfigDict:
    """score_flow's sub-VP, whose times begin at .01, the rest as its VP."""
    config = score_flow_vp(data, network=network)
    config.path.name = "subvp"
    config.training.smallest_time = config.sampling.t_min = 0.01
    return config
