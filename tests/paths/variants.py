"""Every path to test, and how its functions of time are evaluated."""

import jax
import jax.numpy as jnp
import numpy as np

from score_flow.paths import ddpm, log_snr, subvp, ve, vp
from score_flow.paths.base import Path
from tests.discover import builds

# The defaults of every module, found in the directory, and other settings of the known ones.
DEFAULTS: dict[str, Path] = {name: build() for name, build in builds("score_flow.paths").items()}
PATHS: dict[str, Path] = DEFAULTS | {
    "vp-other-betas": vp.build(beta_min=0.2, beta_max=15.0),
    "subvp-other-betas": subvp.build(beta_min=0.2, beta_max=15.0),
    "ve-linear": ve.build(schedule="linear"),
    "ve-other-sigmas": ve.build(sigma_min=0.02, sigma_max=7.0),
    "log_snr-straight": log_snr.build(schedule="straight"),
    "ddpm-cosine": ddpm.build(schedule="cosine"),
    "ddpm-100": ddpm.build(n=100),
    "ddpm-own-table": ddpm.build(betas=tuple(0.02 + 0.01 * i for i in range(40))),
}

# 128 times in [0, 1], dense at both ends; float32 numbers, so that both precisions evaluate the same times. One length
# in all the tests: XLA compiles every elementary operation once for each shape.
TIMES = np.concatenate([[0.0], np.geomspace(1e-5, 0.5, 80), 1 - np.geomspace(0.45, 1e-4, 46), [1.0]]).astype(np.float32)
INSIDE = TIMES[1:-1]

EPS = {False: float(np.finfo(np.float32).eps), True: float(np.finfo(np.float64).eps)}  # by x64


def evaluate(function, *times, x64=True):
    """function(*times) as float64 arrays, computed in float64 or in float32, in pieces of one of two lengths."""
    length = len(times[0])
    piece = len(TIMES) if length <= len(TIMES) else 1024
    pieces = -(-length // piece)
    padded = [np.resize(np.asarray(t, np.float64), pieces * piece).reshape(pieces, -1) for t in times]
    with jax.enable_x64(x64):
        values = [function(*(jnp.asarray(t[i], float) for t in padded)) for i in range(pieces)]
        return jax.tree.map(lambda *parts: np.concatenate([np.asarray(p, np.float64) for p in parts])[:length], *values)


def coefficients(path, t, x64=True):
    """The coefficients at some times and all that is derived from them; rate = -d log_snr/dt."""

    def derive(t):
        c = path.at(t)
        derived = {name: getattr(c, name) for name in ("det", "drift", "g2", "log_snr")}
        return c._asdict() | derived | {"rate": 2 * c.det / (c.alpha * c.sigma)}

    return evaluate(derive, t, x64=x64)
