"""The joint of networks and paths: what a network sees, what its output means, and what jit may share."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from score_flow.build import build_conditioning, build_model
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.model import Model, NetworkDenoiser, Preconditioning, count_parameters
from score_flow.networks.mlp import MLP
from score_flow.paths.linear import Linear
from score_flow.process.prediction import PREDICTIONS, Estimate, Prediction
from tests.exact import GaussianDenoiser
from tests.paths.variants import DEFAULTS, EPS

every_path = pytest.mark.parametrize("path", DEFAULTS.values(), ids=DEFAULTS.keys())

MEAN, STD = 0.5, 0.3
TIMES = jnp.asarray([1e-3, 0.02, 0.3, 0.7, 0.95, 0.999])
X = jnp.asarray(np.random.default_rng(0).normal(size=(len(TIMES), 5)), jnp.float32)


class Readout(nn.Module):
    """The perfect network for Gaussian data: it outputs what the prediction asks for of the exact posterior means."""

    denoiser: GaussianDenoiser
    prediction: Prediction

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        return self.prediction.target(self.denoiser.estimate(x, time), self.denoiser.path.at(time).expand(x))


def perfect(path, prediction) -> Model:
    """A model of N(MEAN, STD^2 I) without an error."""
    return Model(Readout(GaussianDenoiser(path, MEAN, STD), prediction), path, prediction, Preconditioning("t", 1.0))


class Echo(nn.Module):
    """Returns its input plus its time feature."""

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        return x + time[:, None]


def drawn(model, shape, condition=None):
    """Parameters drawn on the host: last layers, which start at 0, too."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: model.init(key, shape, condition), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


FEATURES = {
    "t": lambda t, alpha, sigma: t,
    "1-t": lambda t, alpha, sigma: 1 - t,
    "log_t": lambda t, alpha, sigma: np.log(t),
    "sigma": lambda t, alpha, sigma: sigma,
    "log_sigma": lambda t, alpha, sigma: np.log(sigma),
    "log_snr": lambda t, alpha, sigma: np.log(alpha**2 / sigma**2),
}
INPUTS = {
    "none": lambda x, alpha, sigma: x,
    "2x-1": lambda x, alpha, sigma: 2 * x - 1,
    "unit_variance": lambda x, alpha, sigma: x / np.sqrt(alpha**2 * 0.7**2 + sigma**2)[:, None],
}


@every_path
def test_networks_see_the_closed_forms_of_time_and_input(path):
    t, x = np.asarray(TIMES, np.float64), np.asarray(X, np.float64)
    alpha, sigma = (np.asarray(f(TIMES), np.float64) for f in (path.alpha, path.sigma))
    for feature, time in FEATURES.items():
        for scale, scaled in INPUTS.items():
            model = Model(Echo(), path, PREDICTIONS["noise"], Preconditioning(feature, 999.0, 3.0, scale, data_std=0.7))
            seen = model.apply({}, X, TIMES)
            expected = scaled(x, alpha, sigma) + 999.0 * time(t, alpha, sigma)[:, None] + 3.0
            # A logarithm near 0 has the absolute error of its argument's rounding; all is scaled by 999.
            tolerance = {"rtol": 8 * EPS[False], "atol": 999 * 8 * EPS[False]}
            np.testing.assert_allclose(seen, expected, **tolerance, err_msg=f"{feature} {scale}")


@pytest.fixture
def unchecked_types():
    """Without the test suite's own type checks, which would speak before ours."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("field, name, near", [("time", "log_sigm", "log_sigma"), ("input", "2x-l", "2x-1")])
def test_unknown_preconditioning_is_refused(unchecked_types, field, name, near):
    with pytest.raises(UserError, match=f"model.{field} is '{name}'; allowed: .* Did you mean '{near}'") as error:
        Preconditioning(**{field: name})
    assert "\n" not in str(error.value)


def built(*overrides):
    config = load("configs/digits.py", ["--config.network.name=mlp", "--config.network.width=8", *overrides])
    return build_model(config, 1, build_conditioning(config, num_classes=10))


@pytest.mark.parametrize("name", PREDICTIONS)
def test_models_of_equal_configs_are_equal_and_of_others_are_not(name):
    same = [f"--config.model.prediction={name}", "--config.model.data_std=0.25"]
    first, second = (built(*same) for _ in range(2))
    assert first is not second and first == second and hash(first) == hash(second)
    for other in ("path.name=gvp", "model.time_scale=1000", "network.depth=2", "model.class_conditional=True"):
        assert built(*same, f"--config.{other}") != first, other


def test_equal_configs_share_one_compilation():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def output(model, params, x):
        traces.append(model)
        return model.apply(params, x, jnp.asarray(0.5))

    x = jnp.ones((2, 4, 4, 1))
    for _ in range(2):
        model = built("--config.model.prediction=edm")
        output(model, drawn(model, x.shape), x)
    assert len(traces) == 1


@every_path
def test_perfect_networks_give_the_closed_forms_of_gaussian_data(path):
    """score -(x - m)/s^2 and velocity m' + s'/s (x - m) of the marginal N(m, s^2), whatever the network outputs."""
    c = path.at(TIMES).expand(X)
    alpha, sigma, dalpha, dsigma = (np.asarray(value, np.float64) for value in c)
    m, s = alpha * MEAN, np.sqrt((alpha * STD) ** 2 + sigma**2)
    z = np.asarray(m + s * X, np.float32)  # within the support: posterior means are of the order of 1
    score, slope = -(z - m) / s**2, (alpha * dalpha * STD**2 + sigma * dsigma) / s**2
    x0, noise = MEAN - alpha * STD**2 * score, -sigma * score
    # A dozen roundings; where alpha (sigma) is a small part of x_t, dividing by it magnifies the rounding of x_t.
    largest = max(np.abs(x0).max(), np.abs(noise).max())
    in_noise, in_x0 = (16 * EPS[False] * largest * (1 + ratio) for ratio in (alpha / sigma, sigma / alpha))
    exact = {
        "x0": (x0, in_x0),
        "score": (score, in_noise / sigma),
        "velocity": (dalpha * MEAN + slope * (z - m), np.abs(dalpha) * in_x0 + np.abs(dsigma) * in_noise),
    }
    for name, prediction in PREDICTIONS.items():
        denoiser = perfect(path, prediction).bind({})
        for quantity, (value, allowed) in exact.items():
            error = np.abs(np.asarray(getattr(denoiser, quantity)(jnp.asarray(z), TIMES), np.float64) - value)
            assert (error <= allowed).all(), (name, quantity, (error / allowed).max(axis=1))


def test_one_time_for_a_batch_and_one_for_each_example_agree():
    model = perfect(Linear(), PREDICTIONS["velocity"])
    denoiser = model.bind({})
    for method in (denoiser.x0, denoiser.score, denoiser.velocity):
        np.testing.assert_allclose(method(X, jnp.asarray(0.3)), method(X, jnp.full(len(X), 0.3)), rtol=2 * EPS[False])


def mlp(**fields):
    """A small model of any fields, with parameters."""
    model = Model(MLP(width=16, depth=1, **fields), Linear(), PREDICTIONS["data"])
    return model, drawn(model, X.shape, {"label": jnp.zeros(len(X), jnp.int32)} if fields.get("num_classes") else None)


def test_dropout_only_with_a_key():
    model, params = mlp(dropout=0.5)
    without = dataclasses.replace(model, network=model.network.clone(dropout=0.0))
    plain = model.apply(params, X, TIMES)
    np.testing.assert_array_equal(plain, without.apply(params, X, TIMES))
    one, again, other = (model.apply(params, X, TIMES, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, plain) and not np.allclose(one, other)
    np.testing.assert_array_equal(model.bind(params).x0(X, TIMES), plain)  # a denoiser never drops


def test_given_changes_the_condition_alone():
    model, params = mlp(num_classes=3)
    first, second = ({"label": jnp.full(len(X), label)} for label in (1, 2))
    denoiser = model.bind(params, first)
    other = denoiser.given(second)
    assert isinstance(other, NetworkDenoiser) and other.params is params and other.path is denoiser.path
    np.testing.assert_array_equal(other.x0(X, TIMES), model.bind(params, second).x0(X, TIMES))
    assert not np.allclose(other.x0(X, TIMES), denoiser.x0(X, TIMES))


def test_estimates_are_pairs_that_make_x():
    """alpha E[x0 | x] + sigma E[noise | x] = x for any output of any network."""
    model, params = mlp()
    for name, prediction in PREDICTIONS.items():
        estimate = dataclasses.replace(model, prediction=prediction).bind(params).estimate(X, TIMES)
        assert isinstance(estimate, Estimate)
        c = model.path.at(TIMES).expand(X)
        parts = np.abs(c.alpha * estimate.x0) + np.abs(c.sigma * estimate.noise)
        error = np.abs(c.alpha * estimate.x0 + c.sigma * estimate.noise - X)
        assert (error <= 8 * EPS[False] * (parts + np.abs(X))).all(), name


def test_count_parameters():
    model, params = mlp()
    shapes = jax.eval_shape(lambda key: model.init(key, X.shape), jax.random.key(0))
    width, d = 16, X.shape[1]
    dense = 5 * (width + 1) * width  # two for the time, three for the block
    assert count_parameters(params) == count_parameters(shapes) == dense + (d + 1) * width + (width + 1) * d
    assert count_parameters({"scalar": jnp.zeros(()), "kernel": [jnp.zeros((3, 4)), jnp.zeros((0, 7))]}) == 13
    assert count_parameters({}) == 0
