"""Every image that score_sde inpainted and coloured, against ours fed with the noise that it drew.

The published loop, written out below with our kernels and our projections, gives the published numbers. It has four
faults, which are all that sets it apart from ours: without them the same loop is `chain`, step for step.
1. Start: inpainting knows the first pixels without noise; colouring masks the noise before it is decoupled, which takes
   it from the red channel instead of from the grey value. Ours start with the known part noised to t_max.
2. Time: what is known is noised to t after the predictor too, which has taken the rest to s.
3. Mean: it is made of the draw, noise and all, so that denoising cleans the known part only; and it shrinks that by
   alpha. Ours is the kernel's mean with the known part as it is: kept to the bit.
4. Of several corrector steps only the last is followed by a replacement.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.control.base import Replaced
from sampling.control.colourise import WEIGHTS
from sampling.control.measurement import Grey, Mask
from sampling.predictor_corrector import build
from sampling.published import PublishedChain
from score_flow.paths.base import Path
from tests.golden_compare import Ours, compare
from tests.golden_data import golden_dir, load
from tests.sampling.published import correct, predict
from tests.sampling.test_golden_sampling import CHAINS, CORRECTORS, PREDICTORS, feed, process_of, toy

CASE = "score_sde/sampling/controllable"
pytestmark = pytest.mark.skipif(not (golden_dir() / f"{CASE}.npz").exists(), reason=f"no {CASE}")

# Each of the 2 n replacements leaves what the published float32 basis is away from an orthonormal one.
GREY_COLUMN = np.array([5.7735014e-01, 5.7735026e-01, 5.7735026e-01])
BASIS_ERROR = float(np.abs(GREY_COLUMN * np.sqrt(3) - 1).max())


def images(array):
    """NHWC."""
    array = jnp.asarray(array, float)
    return jnp.moveaxis(array, -3, -1) if array.ndim >= 4 else array


class Case:
    """One case: its data, its kernels and its draw of the prior."""

    def __init__(self, row, arrays):
        self.row, self.process = row, process_of(row["sde"])
        self.chain, self.n, self.eps = CHAINS[self.process.kind], self.process.n, row["eps"]
        weights = {key: images(value) for key, value in arrays.items() if key.startswith("toy_")}
        self.denoiser = toy(weights, self.process, row["continuous"])
        self.times = jnp.asarray(PublishedChain(self.chain, self.n).intervals(self.eps, 1.0), float)
        self.prior = self.process.reference_prior_std * images(arrays[f"{row['key']}.noise"])[0]
        data = arrays["data01" if row["task"] == "inpaint" else "gray01"]  # float32, and so is what it is scaled to
        self.data = images(2 * data - 1 if row["centered"] else data)
        if row["task"] == "inpaint":
            self.measurement = Mask(np.asarray(images(arrays["mask"])))
        else:
            self.measurement = Grey(WEIGHTS["mean"])
        self.known = self.measurement.project(self.data)
        self.corrector = CORRECTORS.get(row["corrector"], "")
        step = [correct(self.corrector, row["snr"], self.chain, self.n, "batch")] if self.corrector else []
        self.correctors = step * row["n_steps"]
        self.predictor = predict(PREDICTORS[row["predictor"]], self.chain, self.n)

    def replaced(self) -> Replaced:
        return Replaced(self.denoiser, self.measurement, self.measurement.apply(self.data)).in_chain()

    def data_noise(self, z):
        """The noise of what is known: in the decoupled basis, as drawn there, its first coordinate is the grey one."""
        return z if self.row["task"] == "inpaint" else z[..., :1] * jnp.ones(3) / jnp.sqrt(3.0)

    def unscaled(self, x):
        return (x + 1) / 2 if self.row["centered"] else x


def draw(kernel, denoiser, x, s, t, noise):
    law = kernel(denoiser, x, s, t)
    mean, std = law(noise) if callable(law) else law
    return mean + std * noise, mean


def published(case: Case, noises):
    """(x, mean) of the published algorithm."""
    project, path = case.measurement.project, case.denoiser.path
    prior = case.process.reference_prior_std * noises[0]
    if case.row["task"] == "inpaint":
        start = prior - project(prior) + case.known  # fault 1
    else:
        start = prior * jnp.array([0.0, 1.0, 1.0]) + case.known  # fault 1

    def visit(carry, row):
        x, mean = carry
        (s, t), drawn = row
        noises = iter(drawn)
        for group in (case.correctors, [case.predictor]):
            for kernel in group:  # fault 4
                x, _ = draw(kernel, case.denoiser, x, s, t, next(noises))
            known = path.alpha(t) * case.known  # fault 2
            x = x - project(x) + known + path.sigma(t) * project(case.data_noise(next(noises)))
            mean = x - project(x) + known  # fault 3
        assert next(noises, None) is None
        return (x, mean), None

    drawn = noises[1:].reshape(case.n, -1, *noises.shape[1:])
    (x, mean), _ = jax.lax.scan(visit, (start, start), (case.times, drawn))
    return case.unscaled(x), case.unscaled(mean)


def mended(case: Case, kernel_noises, data_noises):
    """The same loop without its faults."""
    denoiser, kernels = case.replaced(), [*case.correctors, case.predictor]
    start = case.prior + case.denoiser.path.alpha(jnp.asarray(1.0)) * case.known

    def visit(carry, row):
        x, mean = carry
        (s, t), kernel_noises, data_noises = row
        for kernel, noise, data_noise in zip(kernels, kernel_noises, data_noises, strict=True):
            x, mean = draw(kernel, denoiser, x, s, t, noise)
            x, mean = denoiser.constrain(x, mean, data_noise, s if kernel is kernels[-1] else t)
        return (x, mean), None

    drawn = (noises.reshape(case.n, -1, *case.prior.shape) for noises in (kernel_noises, data_noises))
    (_, mean), _ = jax.lax.scan(visit, (start, start), (case.times, *drawn))
    return case.unscaled(mean)


def ours(monkeypatch, case: Case, kernel_noises, data_noises):
    """Our sampler."""
    row = case.row
    sampler = build(
        t_min=case.eps, n_steps=case.n, predictor=PREDICTORS[row["predictor"]], corrector=case.corrector,
        snr=row["snr"], n_corrector_steps=row["n_steps"], norms="batch" if case.corrector == "langevin" else "example",
        chain=case.chain,
    )  # fmt: skip
    feed(monkeypatch, case.prior, jnp.concatenate([kernel_noises, data_noises]))
    x = sampler(jax.random.split(jax.random.key(0), len(case.prior)), case.replaced(), case.prior.shape[1:]).x
    monkeypatch.undo()
    return case.unscaled(x)


def programs(rows):
    """The cases that are one computation on different noise."""
    same = itertools.groupby(rows, key=lambda row: {k: v for k, v in row.items() if k not in ("key", "denoise")})
    return [list(group) for _, group in same]


def test_published_numbers():
    """In float64; the source's float32 runs are no further from it than they are from its own."""
    description, arrays = load(CASE)
    results = {}
    with jax.enable_x64(True):
        for rows in programs(description["cases"]):
            compiled = jax.jit(functools.partial(published, Case(rows[0], arrays)))
            for row in rows:
                x = compiled(images(arrays[f"{row['key']}.noise"]))[row["denoise"]]
                rounded = 2 * row["sde"][-1] * BASIS_ERROR if row["task"] == "colorize" else 0.0
                value = Ours(jnp.moveaxis(x, -1, 1), relative=rounded)
                results |= {(f"{row['key']}.out", x64): value for x64 in (False, True)}
    compare(CASE, arrays, results, given=r"toy_.*|data01|gray01|mask|.*\.noise")


def test_ours_are_the_published_without_their_faults(monkeypatch):
    """With the most corrector steps there are; with fewer, there is less of the same."""
    description, arrays = load(CASE)
    steps = max(row["n_steps"] for row in description["cases"])
    moved = 0
    with jax.enable_x64(True):
        for row in description["cases"]:
            if row["n_steps"] < steps or not row["denoise"]:
                continue
            case = Case(row, arrays)
            shape = (case.n * (len(case.correctors) + 1), *case.prior.shape)
            noises = jnp.asarray(np.random.default_rng(0).standard_normal((2, *shape)))
            expected = jax.jit(lambda case=case, noises=noises: mended(case, *noises))()
            x = jax.jit(lambda case=case, noises=noises: ours(monkeypatch, case, *noises))()
            assert np.isfinite(x).all()
            np.testing.assert_allclose(x, expected, rtol=0, atol=1e-9 * float(jnp.abs(expected).max()))
            # What is known is kept, which the published samples do not do where alpha(eps) is not 1.
            known, reference = case.unscaled(case.known), images(arrays[f"{row['key']}.out64"])
            part, theirs = (case.measurement.project(z - case.unscaled(0.0)) for z in (x, reference))
            known = known - case.unscaled(0.0)
            np.testing.assert_allclose(part, known, rtol=0, atol=8 * np.finfo(float).eps)
            alpha = float(case.denoiser.path.alpha(jnp.asarray(case.eps)))
            np.testing.assert_allclose(theirs, alpha * known, rtol=0, atol=2 * BASIS_ERROR)
            moved += alpha < 1
    assert moved


def test_published_start_is_not_a_noisy_image(monkeypatch):
    """Fault 1 in numbers: the std of what is known of x_1, over 10^4 pixels; it should be sigma(1)."""
    description, arrays = load(CASE)
    row = next(row for row in description["cases"] if row["task"] == "colorize")
    case = Case(row, arrays)
    sigma = float(case.denoiser.path.sigma(jnp.asarray(1.0)))
    prior = sigma * jax.random.normal(jax.random.key(0), (10_000, 1, 1, 3))
    keys, case.known = jax.random.split(jax.random.key(0), len(prior)), jnp.zeros_like(prior)
    monkeypatch.setattr(Path, "prior_sample", lambda self, keys, shape, t_max=1.0: prior)
    start = Replaced(case.denoiser, case.measurement, case.known[..., :1]).start(keys, (1, 1, 3), 1.0)
    grey, red = (np.std(np.asarray(z)) for z in (case.measurement.apply(start) * jnp.sqrt(3.0), start[..., 0]))
    assert abs(grey / sigma - 1) < 3 / np.sqrt(2 * 10_000) and abs(red / sigma - 1) < 3 / np.sqrt(2 * 10_000)
    published = prior * jnp.array([0.0, 1.0, 1.0])
    grey, red = np.std(case.measurement.apply(published) * jnp.sqrt(3.0)), np.std(published[..., 0])
    assert abs(grey / sigma - np.sqrt(2 / 3)) < 3 / np.sqrt(2 * 10_000) and red == 0
