"""The published conventions of predictor-corrector sampling: their times, tables, norms and flows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.base import chain, example_keys
from sampling.kernels import langevin
from sampling.predictor_corrector import build
from sampling.published import CHAINS, PublishedChain
from score_flow.config import registries
from score_flow.config.components import Component, check, explain, resolve, with_defaults
from score_flow.config.hints import parameters_of
from score_flow.errors import UserError
from score_flow.model import score_of, velocity_of
from score_flow.paths.subvp import SubVP
from score_flow.paths.ve import VE
from score_flow.paths.vp import VP
from tests.discover import builds
from tests.exact import GaussianDenoiser
from tests.sampling.published import correct, predict


def takes(build, argument: str) -> bool:
    """Whether a kernel has an argument."""
    return argument in parameters_of(build)


PATHS = {"ddpm": VP(), "smld": VE(), "euler": SubVP()}


def test_published_times():
    """Both ends are visited and every step spans 1/n, so that the intervals overlap by t_min/(n (n - 1)) or so."""
    rows = PublishedChain("smld", 1000).intervals(1e-3, 1.0)
    np.testing.assert_array_equal(rows[[0, -1], 1], [1.0, 1e-3])
    np.testing.assert_allclose(rows[:, 1] - rows[:, 0], 1e-3, rtol=1e-9)
    np.testing.assert_allclose(np.diff(rows[:, 1]), -(1 - 1e-3) / 999, rtol=1e-9)


@pytest.mark.parametrize("n, t_min", [(1000, 1e-3), (2000, 1e-4), (1000, 1e-5), (4000, 1e-5)])
def test_every_row_of_a_table_is_visited_once(n, t_min):
    """floor(t (n - 1)) in float32 too, where a time that stands for a row may round to below it."""
    chain = PublishedChain("smld", n)
    times = jnp.asarray(chain.intervals(t_min, 1.0)[:, 1])
    std = jax.vmap(lambda t: chain.step(VE(), t, t).std)(times)
    u = np.linspace(0, 1, n)
    sigma = 0.01 * 5000**u
    expected = np.sqrt(sigma**2 - np.concatenate([[0.0], sigma[:-1]]) ** 2)[::-1]
    np.testing.assert_allclose(std, expected, rtol=1e-6)


def test_ddpm_rows_are_the_betas():
    step = PublishedChain("ddpm", 1000).step(VP(), jnp.asarray(0.0), jnp.asarray([0.0, 0.50051, 1.0]))
    beta = np.linspace(1e-4, 0.02, 1000)[[0, 500, 999]]
    np.testing.assert_allclose(step.std, np.sqrt(beta), rtol=1e-6)
    np.testing.assert_allclose(step.scale, np.sqrt(1 - beta), rtol=1e-6)


@pytest.mark.parametrize("predictor", [name for name, f in builds(registries.PREDICTORS).items() if takes(f, "chain")])
@pytest.mark.parametrize("chain_name", CHAINS)
def test_published_steps_are_the_exact_ones_in_the_limit(chain_name, predictor):
    """At n = 4000 the moves of x differ from the path's own by O(1/n) of the move."""
    path, n, t = PATHS[chain_name], 4000, 0.50013
    with jax.enable_x64(True):
        denoiser = GaussianDenoiser(path)
        s, t = jnp.asarray(t - 1 / n), jnp.asarray(t)
        x = denoiser.marginal(float(t))[1] * jnp.linspace(-2, 2, 8).reshape(2, 4)
        ours, published = (predict(predictor, name, n)(denoiser, x, s, t) for name in ("", chain_name))
    np.testing.assert_allclose(published.mean - x, ours.mean - x, rtol=0, atol=0.01 * np.abs(ours.mean - x).max())
    np.testing.assert_allclose(published.std, ours.std, rtol=0.01)


@pytest.mark.parametrize("chain_name", CHAINS)
def test_euler_on_the_flow(chain_name):
    """x - (f x - g^2 score/2)/n and no noise: the source raises here."""
    path, n, t = PATHS[chain_name], 100, jnp.asarray([0.3, 0.7])
    denoiser, x = GaussianDenoiser(path), jnp.linspace(-2, 2, 8).reshape(2, 4)
    law = predict("euler", chain_name, n, probability_flow=True)(denoiser, x, t - 1 / n, t)
    c, estimate = path.at(t).expand(x), denoiser.estimate(x, t)
    drift = velocity_of(estimate, c) - 0.5 * c.g2 * score_of(estimate, c)
    np.testing.assert_allclose(law.mean, x - (drift + 0.5 * c.g2 * score_of(estimate, c)) / n, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(law.std, jnp.zeros_like(law.std))


def test_batch_norms_are_those_of_one_example_in_a_batch_of_one():
    """As |z| = sqrt(d) here; in a batch they are means: another's score, twice as long, shortens everyone's step."""
    denoiser, x, z = GaussianDenoiser(VP()), jnp.asarray([[3.0, -1.0, 0.5, 2.0]]), jnp.asarray([[1.0, -1.0, 1.0, -1.0]])
    s, t = jnp.asarray(0.49), jnp.asarray(0.5)
    example, batch = (
        langevin.corrector(0.16)(denoiser, x, s, t),
        langevin.corrector(0.16, norms="batch")(denoiser, x, s, t)(z),
    )
    np.testing.assert_allclose(batch.mean, example.mean, rtol=1e-6)
    np.testing.assert_allclose(batch.std.reshape(-1), example.std.reshape(-1), rtol=1e-6)
    mean = denoiser.marginal(0.5)[0]
    pair = jnp.concatenate([x, mean + 2 * (x - mean)])  # a Gaussian's score is linear
    joint = langevin.corrector(0.16, norms="batch")(denoiser, pair, s, t)(jnp.concatenate([z, z]))
    np.testing.assert_allclose(joint.std.reshape(-1), example.std.reshape(-1)[0] / 1.5, rtol=1e-5)


def test_a_chain_hands_its_noise_to_a_kernel_that_asks():
    """x_mean and the noise are one draw: the last mean and the last x differ by std z with the z that set the step."""
    denoiser, keys, x = GaussianDenoiser(VP()), example_keys(0, jnp.arange(3)), jnp.linspace(-1, 1, 12).reshape(3, 4)
    kernel, rows = correct("langevin", 0.16, "ddpm", 100, "batch"), np.array([[0.49, 0.5]])
    mean, noisy = (
        chain(keys, denoiser, x, kernels=[kernel], intervals=rows, denoise=denoise) for denoise in (True, False)
    )
    score = denoiser.score(x, jnp.asarray(0.5))
    size = float(jnp.mean((mean - x) / score))
    z = (noisy - mean) / np.sqrt(2 * size)
    a = 1 - (0.1 + 49 / 99 * 19.9) / 100
    norms = [np.linalg.norm(value, axis=1).mean() for value in (z, score)]
    np.testing.assert_allclose(size, 2 * a * (0.16 * norms[0] / norms[1]) ** 2, rtol=1e-4)


@pytest.mark.parametrize(
    "path, fields, message",
    [
        (VE(), {"chain": "ddpm"}, "needs a VP path"),
        (VP(), {"chain": "ddpm", "n_steps": 10}, "beta/n < 1"),
        (VP(), {"chain": "smld"}, "needs a VE path"),
        (VP(), {"chain": "dpm"}, "allowed"),
        (VP(), {"chain": "ddpm", "predictor": "ddim"}, "needs predictor = ancestral or euler"),
        (VP(), {"predictor": "langevin"}, "predictor is 'langevin'; allowed"),
        (VP(), {"chain": "ddpm", "grid": "karras"}, "own times"),
        (VP(), {"norms": "batch"}, "corrector = langevin"),
        (VP(), {"norms": "batches", "corrector": "langevin"}, "allowed"),
        (VP(), {"predictor": "ancestral", "probability_flow": True}, "ddim"),
        (VP(), {"predictor": "", "corrector": "langevin", "probability_flow": True}, "needs predictor"),
    ],
)
def test_what_is_undefined_is_one_line(path, fields, message):
    with pytest.raises(UserError, match=message) as error:
        build(**fields)(example_keys(0, jnp.arange(2)), GaussianDenoiser(path), (3,))
    assert "\n" not in str(error.value)


KICK = '''
"""Of another package."""

from score_flow.config.hints import Positive
from score_flow.process.transition import Gaussian


def predictor(strength: Positive, snr: float = 0.5):
    """No law, but what it was built with."""
    return lambda denoiser, x, s, t: Gaussian(x * 0 + strength + snr, s * 0)
'''
WHERE = "config.sampling"


@pytest.fixture
def kick(tmp_path, monkeypatch):
    """The name of a kernel in a package of one's own."""
    (tmp_path / "my_laboratory").mkdir()
    (tmp_path / "my_laboratory/kick.py").write_text(KICK)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_laboratory.kick"


def section(**arguments) -> Component:
    return Component("predictor_corrector", arguments)


def test_a_kernel_of_ones_own_with_an_argument_of_its_own(kick):
    """Its argument is one of the sampler's, typed and checked; where it has the name of another, it gets its value."""
    chosen = section(predictor=kick, strength=2, snr=0.25, n_steps=3)
    keys, shape = example_keys(0, jnp.arange(2)), (3,)
    for sampler in (resolve(registries.SAMPLERS, chosen, WHERE), build(**chosen.arguments)):
        np.testing.assert_array_equal(sampler(keys, GaussianDenoiser(VP()), shape).x, np.full((2, 3), 2.25))
    assert check(registries.SAMPLERS, chosen, WHERE).arguments["strength"] == 2.0
    defaults, own = (with_defaults(registries.SAMPLERS, each, WHERE).arguments for each in (section(), chosen))
    assert own.keys() - defaults.keys() == {"strength"}  # so that results are of it


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"strength": -1.0}, "config.sampling.strength is -1.0; it must be above 0"),
        ({"strength": "much"}, "config.sampling.strength must be of type float"),
        ({"strenght": 1.0}, "unknown key 'strenght'.*Did you mean 'strength'"),
        ({}, "needs strength: give --config.sampling.strength"),
    ],
)
def test_what_a_kernel_of_ones_own_refuses(kick, arguments, message):
    with pytest.raises(UserError, match=message):
        resolve(registries.SAMPLERS, section(predictor=kick, **arguments), WHERE)


def test_arguments_of_kernels_are_listed_and_those_of_others_refused():
    assert re.search(r"eta +float: at least 0  \[0.0\] with predictor = ddim", explain(registries.SAMPLERS))
    with pytest.raises(UserError, match="unknown key 'eta'"):
        check(registries.SAMPLERS, section(predictor="euler", eta=0.5), WHERE)
    with pytest.raises(TypeError, match="eta"):
        build(predictor="euler", eta=0.5)
    with pytest.raises(UserError, match="config.sampling.eta is -1"):
        build(predictor="ddim", eta=-1)
