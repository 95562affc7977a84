"""How the published rows were evaluated, on our recipes; not a recipe by itself.

A row is a file that exports `get_config`, made by `evaluated`, and `expected`, {"job.figure": (value, tolerance)}.

    python main.py --mode=import --checkpoint=FILE --config=configs/reproduce/NAME.py --workdir=DIR
    python main.py --mode=reproduce --config=configs/reproduce/NAME.py --workdir=DIR

Tolerances: .1 of an FID and .15 of an Inception score for other noise in 50 000 samples, .02 bits/dim for other images
left out and other dequantisation noise; a table's last digit is within them.
"""

from collections.abc import Callable
from importlib import import_module

from ml_collections import ConfigDict

from configs.base import component

Get = Callable[[], ConfigDict]


def evaluated(recipe: str, *changes: Callable[[ConfigDict], None]) -> Get:
    """configs/<recipe>.py, the one checkpoint of an imported run, no job but those of the changes."""
    module = import_module(f"configs.{recipe.replace('/', '.')}")  # here: a name that is none is refused in its line

    def preset() -> ConfigDict:
        config = module.get_config()
        config.eval.begin_ckpt = config.eval.end_ckpt = 0
        config.eval.enable_loss = config.eval.enable_sampling = config.eval.enable_bpd = False
        for change in changes:
            change(config)
        return config

    return preset


def bits_per_dim(config: ConfigDict) -> None:
    """Likelihood of the test images by RK45, uniformly dequantised, five times (score_sde, score_flow)."""
    config.eval.enable_bpd = True
    config.eval.num_repeats = 5
    config.eval.bpd_dataset = "test"
    config.eval.smallest_time = 1e-5
    config.eval.solver.method = "dopri5"
    config.eval.solver.rtol = config.eval.solver.atol = 1e-5


def variational(config: ConfigDict) -> None:
    """... dequantised by the run's own Flow++ network instead."""
    config.eval.dequantizer = "variational"


def likelihood_training(config: ConfigDict) -> None:
    """score_flow's likelihood weighting and importance sampling of time, without mirrored images."""
    config.training.likelihood_weighting = config.training.importance_weighting = True
    config.data.random_flip = False


def fid(config: ConfigDict) -> None:
    """50 000 samples of the recipe's own sampler against the training images.

    The weights' file is --config.eval.extractor.weights, the statistics' --config.eval.stats (cifar10_stats.npz).
    """
    config.eval.jobs = ("fid",)
    config.eval.num_samples = 50_000
    config.eval.fid_dataset = "train"
    config.eval.extractor = component("inception", biased_logits=True)  # TF-GAN's, by which they are published


def probability_flow(config: ConfigDict) -> None:
    """Samples by RK45 from t = 1 to where the recipe's sampler ends."""
    config.sampling = component("ode", t_min=config.sampling.t_min, method="dopri5", rtol=1e-5, atol=1e-5)


def chain_bound(config: ConfigDict) -> None:
    """The variational bound of the chain that was trained, term by term (improved-diffusion)."""
    config.eval.jobs = ("vlb",)
    config.eval.bpd_dataset = "test"


def sit_fid(config: ConfigDict) -> None:
    """50 000 decoded samples against ADM's statistics of ImageNet (SiT).

    The autoencoder's folder is --config.eval.autoencoder (sd-vae-ft-ema), the weights' file
    --config.eval.extractor.weights, the statistics' --config.eval.stats (VIRTUAL_imagenet256_labeled.npz).
    Ours go through the classes in turn, theirs were drawn at random.
    """
    config.eval.jobs = ("fid",)
    config.eval.num_samples = 50_000
    config.eval.extractor = component("inception")  # ADM's evaluator leaves the bias of the logits out


def guided(config: ConfigDict) -> None:
    """Classifier-free guidance of the first three channels of four, at 1.5."""
    config.guidance.scale = 1.5
    config.guidance.channels = 3


def sit_flow(config: ConfigDict) -> None:
    """Their ODE: RK45 at rtol 1e-3, atol 1e-6, the whole of the time."""
    config.sampling = component("ode", t_min=0.0, method="dopri5", rtol=1e-3, atol=1e-6)
