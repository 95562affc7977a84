"""Control of sampling: measurements by dense algebra, posteriors of Gaussian data, every control on every sampler."""

import dataclasses
import inspect
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sampling.base import chain, example_keys, normal
from sampling.control.base import KEY, Replaced, measured
from sampling.kernels.ancestral import ancestral
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.model import Denoiser
from score_flow.paths.gvp import GVP
from score_flow.paths.linear import Linear
from score_flow.paths.vp import VP
from tests.discover import builds
from tests.exact import GaussianDenoiser
from tests.sampling.test_measurement import MASK, MEAN, MEASUREMENTS, SHAPE, STD, D, dense, known

SLOW = pytest.mark.slow
CHAINS = ("ancestral", "consistency", "ddim", "flow_map", "predictor_corrector")


def posterior(h, y, noise_variance, prior_mean, prior_variance):
    """(mean, covariance) of x ~ N(prior_mean, prior_variance I) given y = h x + noise."""
    gain = prior_variance * h.T @ np.linalg.pinv(prior_variance * h @ h.T + noise_variance * np.eye(len(h)), rcond=1e-9)
    return prior_mean + gain @ (y - h @ prior_mean), prior_variance * (np.eye(D) - gain @ h)


@pytest.mark.parametrize("path, sigma_y", [(VP(), 0.0), (Linear(), 0.2)], ids=["vp", "linear-noisy"])
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_guided_means_are_the_conditional_ones(name, sigma_y, path):
    """E[x0 | x_t, y] of x0 | x_t ~ N(E[x0 | x_t], r^2 I), exactly, at a time for each example."""
    measurement = MEASUREMENTS[name]
    with jax.enable_x64(True):
        t, x = jnp.array([0.01, 0.4, 0.97]), jax.random.normal(jax.random.key(0), (3, *SHAPE))
        denoiser, y, h = GaussianDenoiser(path, MEAN, STD), known(measurement, 3), dense(measurement)
        wrap = measured(measurement, y, "pseudo_inverse", sigma_y=sigma_y, data_std=STD)
        guided = jax.jit(lambda: wrap(denoiser, jnp.arange(3)).estimate(x, t))()
        plain, (alpha, sigma) = denoiser.x0(x, t), (np.asarray(f(t)) for f in (path.alpha, path.sigma))
        r2 = 1 / (1 / STD**2 + (alpha / sigma) ** 2)
        for i in range(3):
            y_i, mean_i = np.asarray(y[i]).ravel(), np.asarray(plain[i]).ravel()
            expected, _ = posterior(h, y_i, sigma_y**2, mean_i, r2[i])
            np.testing.assert_allclose(np.asarray(guided.x0[i]).ravel(), expected, rtol=0, atol=1e-10)
        c = path.at(t).expand(x)
        np.testing.assert_allclose(c.alpha * guided.x0 + c.sigma * guided.noise, x, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name, sampler", [("matrix", "multistep"), ("mask", "ode"), ("grey", "ancestral")])
def test_guided_samples_have_the_conditional_mean(name, sampler):
    """Within 3 standard errors each, 24 of them (one in 4 x 10^2 lies outside: 3.7 for all), and the solver's bias."""
    measurement, n, n_steps = MEASUREMENTS[name], 2000, 40
    y, h = known(measurement), dense(measurement)
    build = builds("sampling")[sampler]
    steps = {"rtol": 1e-4, "atol": 1e-4, "per_example": False} if sampler == "ode" else {"n_steps": n_steps}
    draw = build(t_min=1e-3, t_max=0.999, **steps)
    control = measured(measurement, y, "pseudo_inverse", sigma_y=0.1, data_std=STD)

    @jax.jit
    def samples(indices):
        return draw(example_keys(0, indices), control(GaussianDenoiser(Linear(), MEAN, STD), indices), SHAPE).x

    x = np.asarray(samples(jnp.arange(n)), np.float64).reshape(n, D)
    mean, covariance = posterior(h, np.asarray(y, np.float64).ravel(), 0.01, np.full(D, MEAN), STD**2)
    bias = 0.0 if sampler == "ode" else STD / n_steps
    allowed = 3.7 * np.sqrt(np.diag(covariance) / n) + 1e-3 * (1 + MEAN) + bias
    assert (np.abs(x.mean(axis=0) - mean) < allowed).all()


# Replacement.


@dataclasses.dataclass(frozen=True)
class Watched(GaussianDenoiser):
    """Reports the times at which it is asked, and the noise in what is known of x, an image."""

    image: jax.Array | None = None
    seen: list = dataclasses.field(default_factory=list)

    def estimate(self, x, t):
        level = (x - self.path.alpha(t) * self.image) / self.path.sigma(t)
        jax.debug.callback(lambda t, level: self.seen.append((float(t), np.asarray(level))), t, level)
        return super().estimate(x, t)


@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=() if name == "predictor_corrector" else SLOW) for name in CHAINS]
)
def test_replacement_keeps_what_is_known(sampler):
    """To the bit at the end; at every call with the noise of its time; the rest keeps the law of the data."""
    n, n_steps = 256, 40
    fields = {"corrector": "annealed_langevin", "snr": 0.05} if sampler == "predictor_corrector" else {}
    draw = builds("sampling")[sampler](t_min=1e-3, t_max=0.999, n_steps=n_steps, **fields)
    denoiser = Watched(VP(), MEAN, STD, image=MEAN + STD * jax.random.normal(jax.random.key(5), SHAPE))
    measurement = MEASUREMENTS["mask"]
    y = measurement.apply(denoiser.image[None])
    control = measured(measurement, y, "replacement", sigma_y=0.0, data_std=STD)
    indices = jnp.arange(n)
    x = np.asarray(jax.jit(lambda: draw(example_keys(0, indices), control(denoiser, indices), SHAPE).x)())
    jax.effects_barrier()
    where = np.broadcast_to(MASK, SHAPE) > 0
    np.testing.assert_array_equal(x[:, where], np.broadcast_to(denoiser.image[where], (n, where.sum())))
    assert len(denoiser.seen) == n_steps * (1 + len(fields) // 2)
    size = n * where.sum()
    for t, level in denoiser.seen:
        assert abs(level[:, where].mean()) < 4 / math.sqrt(size), t
        assert abs(level[:, where].std() - 1) < 4 / math.sqrt(2 * size), t
    rest, size = x[:, ~where], n * (~where).sum()
    assert abs(rest.mean() - MEAN) < 3 * STD / math.sqrt(size) + STD * 10 / n_steps
    assert abs(rest.std() - STD) < 3 * STD / math.sqrt(2 * size) + STD * 10 / n_steps


def test_unconstrained_chains_are_what_they_were():
    """Noise for what is known is of other keys: the sample is the hand-written loop's."""
    denoiser, keys, rows = GaussianDenoiser(VP()), example_keys(0, jnp.arange(2)), np.array([[0.5, 0.9], [0.1, 0.5]])

    @jax.jit
    def both(x):
        drawn = x
        for i, (s, t) in enumerate(rows):
            mean, std = ancestral()(denoiser, drawn, jnp.asarray(s), jnp.asarray(t))
            drawn = mean + std * normal(keys, (3,), i)
        return chain(keys, denoiser, x, kernels=[ancestral()], intervals=rows), mean

    np.testing.assert_allclose(*both(jnp.ones((2, 3))), rtol=1e-5)


# Every control on every sampler.


@pytest.fixture(scope="module")
def controls(tmp_path_factory):
    """name -> fields of every control, and its files; some are given two inputs."""
    folder, rng = tmp_path_factory.mktemp("control"), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (2, 4, 3), np.uint8)).save(folder / "image.png")
    Image.fromarray((255 * MASK[..., 0]).astype(np.uint8)).save(folder / "mask.png")
    np.savez(folder / "images.npz", image=rng.integers(0, 256, (2, 2, 4, 3), np.uint8))
    np.save(folder / "matrix.npy", rng.normal(size=(4, D)))
    np.savez(folder / "numbers.npz", y=rng.normal(size=(2, 4)))
    fields = {
        "inpaint": {"input": "images.npz", "mask": "mask.png"},
        "colourise": {"input": "image.png", "grey": "luminance"},
        "super_resolution": {"input": "images.npz", "low_res": 2},
        "linear": {"input": "numbers.npz", "matrix": "matrix.npy", "sigma_y": 0.1},
        "sdedit": {"input": "image.png"},
    }
    files = ("input", "mask", "matrix")
    fields = {name: {} for name in builds("sampling.control")} | fields  # one more may need nothing
    return {name: {k: str(folder / v) if k in files else v for k, v in given.items()} for name, given in fields.items()}


def make(name, fields):
    build = builds("sampling.control")[name]
    return build(image_shape=SHAPE, scaling=Scaling(-1.0, 1.0, 256), dequantised=False, **fields)


@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=() if name == "ddim" else SLOW) for name in builds("sampling")]
)
def test_every_sampler_takes_every_control(sampler, controls):
    build = builds("sampling")[sampler]
    steps = {"n_steps": 4} if "n_steps" in inspect.signature(build).parameters else {}
    draw, denoiser = build(t_min=1e-2, t_max=0.9, **steps), GaussianDenoiser(GVP())
    wraps = {name: make(name, fields) for name, fields in controls.items()}

    @jax.jit
    def samples(wraps, indices):
        keys = example_keys(0, indices)
        return {name: draw(keys, wrap(denoiser, indices), SHAPE) for name, wrap in wraps.items()}

    for name, result in samples(wraps, jnp.arange(3)).items():
        assert np.isfinite(result.x).all() and np.asarray(result.ok).all(), name
        # Inputs are taken in turn; the noise of a sample is its own.
        assert not np.allclose(result.x[0], result.x[2], atol=1e-3), name


@pytest.mark.parametrize("sampler", builds("sampling"))
def test_samplers_that_are_no_chains_refuse_replacement(sampler, controls):
    """They say so before anything is computed."""
    build = builds("sampling")[sampler]
    draw = build(t_max=0.9, **{"n_steps": 4} if "n_steps" in inspect.signature(build).parameters else {})
    wrap = make("inpaint", controls["inpaint"] | {"method": "replacement"})

    def trace():
        return jax.eval_shape(
            lambda i: draw(example_keys(0, i), wrap(GaussianDenoiser(GVP()), i), SHAPE), jnp.arange(2)
        )

    if sampler in CHAINS:
        trace()
        return
    with pytest.raises(UserError, match="pseudo_inverse") as error:
        trace()
    assert "\n" not in str(error.value)


def test_the_published_heun_chain_takes_replacement(controls):
    wrap = make("inpaint", controls["inpaint"] | {"method": "replacement"})
    draw = builds("sampling")["sde"](t_max=0.9, n_steps=4, method="noise_first_heun", last_step="mean")
    x = jax.jit(lambda i: draw(example_keys(0, i), wrap(GaussianDenoiser(GVP()), i), SHAPE).x)(jnp.arange(2))
    where = np.broadcast_to(MASK, SHAPE) > 0
    np.testing.assert_array_equal(x[:, where], wrap.pictures[0][:, where])


def test_networks_never_see_what_is_known():
    """Solvers that step each example alone slice it with the condition, whose own part is all that the network gets."""
    seen = []

    class Conditional(GaussianDenoiser):
        def given(self, condition):
            seen.append(jax.tree.map(jnp.shape, condition))
            return self

    denoiser = Conditional(VP(), condition={"label": jnp.arange(4)})
    measurement = MEASUREMENTS["mask"]
    control = measured(measurement, known(measurement, 2), "pseudo_inverse", sigma_y=0.0, data_std=STD)
    wrapped = control(denoiser, jnp.arange(4))
    assert set(wrapped.condition) == {"label", KEY}
    draw = builds("sampling")["ode"](method="heun", n_steps=2)
    jax.eval_shape(lambda: draw(example_keys(0, jnp.arange(4)), wrapped, SHAPE).x)
    assert seen and all(condition == {"label": (1,)} for condition in seen)
    without = wrapped.given({KEY: wrapped.y})
    assert isinstance(without, Denoiser) and seen[-1] is None


def test_sdedit_starts_from_the_noised_image(controls):
    control, path = make("sdedit", controls["sdedit"]), VP()
    start = jax.jit(lambda i: control(GaussianDenoiser(path), i).start(example_keys(0, i), SHAPE, 0.3))
    x = start(jnp.arange(500))
    alpha, sigma = (float(f(jnp.asarray(0.3))) for f in (path.alpha, path.sigma))
    level = np.asarray((x - alpha * control.known) / sigma)
    assert abs(level.mean()) < 3 / math.sqrt(level.size) and abs(level.std() - 1) < 3 / math.sqrt(2 * level.size)
    with pytest.raises(UserError, match="t_max"):
        control(GaussianDenoiser(path), jnp.arange(2)).start(example_keys(0, jnp.arange(2)), SHAPE, 1.0)


def test_an_overshooting_step_is_bounded():
    """A network whose derivative is wrong, at the noisy end where it is divided by alpha: the measured part stays."""

    class Wrong(GaussianDenoiser):
        def estimate(self, x, t):
            estimate = super().estimate(x, t)
            return estimate._replace(x0=estimate.x0 + 0.1 * jnp.sin(3 * x))

    measurement, x, t = MEASUREMENTS["mask"], jax.random.normal(jax.random.key(0), (2, *SHAPE)), jnp.asarray(1 - 1e-4)
    denoiser, y = Wrong(Linear()), known(measurement, 2)
    plain = denoiser.x0(x, t)
    for sigma_y in (0.0, 0.1):
        wrap = measured(measurement, y, "pseudo_inverse", sigma_y=sigma_y, data_std=STD)
        guided = jax.jit(lambda wrap=wrap: wrap(denoiser, jnp.arange(2)).x0(x, t))()
        gap = jnp.linalg.norm((y - measurement.apply(plain)).reshape(2, -1), axis=1)
        moved = jnp.linalg.norm(measurement.project(guided - plain).reshape(2, -1), axis=1)
        np.testing.assert_allclose(moved, gap, rtol=1e-4)  # it would be some thousand times as far


def test_replaced_is_refused_outside_a_chain():
    replaced = Replaced(GaussianDenoiser(VP()), MEASUREMENTS["mask"], known(MEASUREMENTS["mask"]))
    with pytest.raises(UserError, match="predictor_corrector"):
        replaced.x0(jnp.zeros((1, *SHAPE)), jnp.asarray(0.5))


# Mistakes are one line.


@pytest.mark.parametrize(
    "name, fields, expected",
    [
        ("inpaint", {"input": "none.png"}, "no such file"),
        ("inpaint", {"input": "big.png"}, r"5 x 4 pixels.*allowed: 2 x 4"),
        ("inpaint", {"mask": "big.png"}, r"config.control.mask.*5 x 4"),
        ("inpaint", {"mask": "black.png"}, "white"),
        ("inpaint", {"input": "text.png"}, "text.png"),
        ("inpaint", {"input": "cut.png"}, "cut.png"),
        ("inpaint", {"input": "text.npz"}, "text.npz"),
        ("inpaint", {"method": "replacment"}, "replacement"),
        ("inpaint", {"method": "replacement", "sigma_y": 0.1}, "pseudo_inverse"),
        ("inpaint", {"sigma_y": -1.0}, "sigma_y"),
        ("colourise", {"grey": "men"}, "mean"),
        ("super_resolution", {"low_res": 3}, "divisor"),
        ("super_resolution", {"low_res": 0, "input": "big.png"}, r"5 x 4.*allowed: 5 x 5"),
        ("linear", {"matrix": "numbers.npz"}, r"\(m, 24\)"),
        ("linear", {"input": "matrix.npy"}, r"\(n, 4\)"),
        ("linear", {"matrix": "pickled.npy"}, "pickled.npy"),
        ("linear", {"matrix": "nan.npy"}, "finite"),
    ],
)
def test_mistakes_are_one_line(controls, name, fields, expected):
    folder = Path(controls["inpaint"]["input"]).parent
    Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(folder / "big.png")
    Image.fromarray(np.zeros((2, 4), np.uint8)).save(folder / "black.png")
    (folder / "cut.png").write_bytes((folder / "image.png").read_bytes()[:60])
    for file in ("text.png", "text.npz"):
        (folder / file).write_text("hello")
    np.save(folder / "pickled.npy", np.array([{}]), allow_pickle=True)
    np.save(folder / "nan.npy", np.full((2, D), np.nan))
    files = {k: str(folder / v) for k, v in fields.items() if k in ("input", "mask", "matrix")}
    with pytest.raises(UserError, match=expected) as error:
        make(name, controls[name] | fields | files)
    assert "\n" not in str(error.value)
