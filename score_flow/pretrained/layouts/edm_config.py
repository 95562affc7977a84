"""What EDM's networks and those after them are, in our settings: noise levels as times, and EDM's readout of them."""

from typing import Any

LEVELS = (0.002, 80.0)  # between which EDM samples


def preconditioned(levels: tuple[float, float], data_std: float) -> dict[str, Any]:
    """Return overrides for a path from the least to the largest noise level, and inputs and times as EDM scales them.

    The input has variance 1, the time is log(sigma)/4 (Karras et al. 2022, arXiv:2206.00364, table 1).
    """
    return {
        "path.name": "ve",
        "path.sigma_min": levels[0],
        "path.sigma_max": levels[1],
        "model.data_std": data_std,
        "model.input": "unit_variance",
        "model.time": "log_sigma",
        "model.time_scale": 0.25,
        "model.time_shift": 0.0,
    }


def denoiser(n_steps: int) -> dict[str, Any]:
    """Return overrides for a network that denoises, and EDM's sampler in so many steps."""
    return {
        "model.prediction": "edm",
        "sampling.name": "heun",
        "sampling.n_steps": n_steps,
        "sampling.grid": "karras",
        "sampling.t_min": 0.0,
    }


def images(shape: tuple[int, int, int], num_classes: int) -> dict[str, Any]:
    """Return overrides for images of levels in [-1, 1]."""
    return {
        "data.image_shape": shape,
        "data.num_classes": num_classes,
        "data.levels": 256,
        "data.centered": True,
    }
