"""Bits per dimension without a network: a Gaussian's, PNG's and WebP's of the same images."""

import io
import math
from collections.abc import Callable

import numpy as np
import scipy.linalg
from jaxtyping import Float
from PIL import Image
from threadpoolctl import threadpool_limits

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job
from score_flow.data.base import Source, shuffled
from score_flow.numerics import mean_and_error

SHRINKAGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # 1: each pixel alone
MOST = 20_000  # training images that the Gaussian is fitted to
WIDEST = 4096  # dimensions up to which its covariance is full
CHUNK = 256  # images held as numbers at a time
WAYS = {"png": {"format": "PNG", "optimize": True}, "webp": {"format": "WEBP", "lossless": True, "method": 6}}

Bits = Float[np.ndarray, "n"]
Images = Float[np.ndarray, "n d"]


def build(context: Context, opened: None) -> Fold:
    """Compute, in one round, bits/dim of every image of the split by each way: mean and standard error over images.

    The Gaussian is that of training images with uniform noise inside each level, over which the mean is exact. Its
    covariance is full, but for a share of what lies beside the diagonal, which the last tenth of the training images
    decides; above WIDEST dimensions it is diagonal. PNG and WebP count all bytes of a file, and need 1 or 3 channels.
    """
    source, ways = context.source, list(WAYS) if context.run.image_shape[-1] in (1, 3) else []

    def step(state):
        gaussian, shrinkage = gaussian_bits(context.run.train_source, source)
        found = {name: np.concatenate(list(_over(source, lambda x, n=name: _file_bits(x, n)))) for name in ways}
        return {"done": np.ones(1), "shrinkage": np.array(shrinkage), "gaussian": gaussian, **found}

    def init():
        return {"done": np.zeros(1), "shrinkage": np.zeros(())} | {
            name: np.zeros(len(source)) for name in ("gaussian", *ways)
        }

    def finish(state):
        bits = {name: state[name] for name in ("gaussian", *ways)}
        write_arrays(context.directory / "baselines.npz", **bits)
        result = {}
        for name, values in bits.items():
            mean, error = mean_and_error(values)
            result |= {f"{name}_bits_per_dim": mean, f"{name}_bits_per_dim_standard_error": error}
        return result | {"gaussian_shrinkage": float(state["shrinkage"])} | context.about()

    return Fold(context.key, lambda state: int(not state["done"]), init, step, finish)


@threadpool_limits.wrap(limits=1)  # sums round by the number of threads
def gaussian_bits(train: Source, test: Source) -> tuple[Bits, float]:
    """Return bits/dim of every test image by the best Gaussian of the training images, and its shrinkage."""
    chosen = shuffled(len(train))[:MOST]
    n = max(1, len(chosen) // 10)
    full = math.prod(train.image_shape) <= WIDEST
    best = 1.0
    if full and len(chosen) > 2:
        fit, held_out = _moments(train, chosen[n:]), _flat(train, chosen[:n])
        best = min(SHRINKAGES, key=lambda share: _bits(*_shrunk(*fit, share), held_out).mean())
    mean, covariance = _moments(train, chosen, full=full)
    of = _shrunk(mean, covariance, best) if full else (mean, covariance)
    return np.concatenate(list(_over(test, lambda x: _bits(*of, x.reshape(len(x), -1).astype(float))))), best


def _moments(source: Source, indices: np.ndarray, full: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and (co)variance of images with noise U(0, 1) inside each level; float64, in levels."""
    parts = [indices[i : i + CHUNK] for i in range(0, len(indices), CHUNK)]
    mean = sum(_flat(source, part).sum(axis=0) for part in parts) / len(indices)
    second = (lambda x: x.T @ x) if full else (lambda x: (x**2).sum(axis=0))
    square = sum(second(_flat(source, part) - mean) for part in parts) / len(indices)
    return mean + 0.5, square + (np.eye(len(mean)) if full else 1) / 12


def _shrunk(mean: np.ndarray, covariance: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    return mean, (1 - share) * covariance + share * np.diag(np.diag(covariance))


def _bits(mean: np.ndarray, covariance: np.ndarray, levels: Images) -> Bits:
    """Return bits/dim of N(mean, covariance) for levels, in the mean over the noise inside them."""
    off, d = levels + 0.5 - mean, len(mean)
    if covariance.ndim == 1:
        square, trace, log_det = (off**2 / covariance).sum(axis=1), (1 / covariance).sum(), np.log(covariance).sum()
    else:
        root = scipy.linalg.cholesky(covariance, lower=True)
        inverse = scipy.linalg.solve_triangular(root, np.eye(d), lower=True)
        square, trace = ((off @ inverse.T) ** 2).sum(axis=1), (inverse**2).sum()
        log_det = 2 * np.log(np.diag(root)).sum()
    return 0.5 * (square + trace / 12 + log_det + d * math.log(2 * math.pi)) / (d * math.log(2))


def _flat(source: Source, indices: np.ndarray) -> Images:
    image = source.read(indices)["image"]
    return image.reshape(len(image), -1).astype(float)


def _over(source: Source, function: Callable[[np.ndarray], Bits]):
    """The function of the images of a source, in parts."""
    for start in range(0, len(source), CHUNK):
        yield function(source.read(np.arange(start, min(start + CHUNK, len(source))))["image"])


def _file_bits(image: np.ndarray, way: str) -> Bits:
    """Return bits/dim of the files of images, headers included."""
    sizes = []
    for pixels in image:
        stream = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, **WAYS[way])
        sizes.append(8 * stream.tell() / pixels.size)
    return np.array(sizes)


job = Job(build, frozenset({"pixels", "levels", "split", "training images"}))
