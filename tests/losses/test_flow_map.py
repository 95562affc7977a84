"""The flow map: its identities on Gaussian data, where the average velocity has a closed form; its objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling.guidance import guide
from score_flow.build import experiment
from score_flow.config.loading import load, with_settings
from score_flow.errors import UserError
from score_flow.losses.flow_map import ERRORS, Point, Teacher
from score_flow.numerics import expand
from tests.discover import thinned
from tests.exact import GaussianDenoiser
from tests.paths.variants import DEFAULTS

every_path = pytest.mark.parametrize("path", DEFAULTS.values(), ids=DEFAULTS)
T = np.linspace(0.2, 0.95, 6)
S = T * np.linspace(0.1, 0.9, 6)


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def gaussian(path):
    """(a perfect network, x, t, s)."""
    return GaussianDenoiser(path), jax.random.normal(jax.random.key(0), (6, 2, 2, 1)), jnp.asarray(T), jnp.asarray(S)


@every_path
def test_the_average_velocity_composes_and_ends_in_the_velocity(path):
    denoiser, x, t, s = gaussian(path)
    m = (2 * t + s) / 3
    first, moved = denoiser.average_velocity(x, t, m), denoiser.average_velocity(x, t, s)
    second = denoiser.average_velocity(x - expand(t - m, x) * first, m, s)
    whole = expand(t - m, x) * first + expand(m - s, x) * second
    np.testing.assert_allclose(expand(t - s, x) * moved, whole, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(denoiser.average_velocity(x, t, t), denoiser.velocity(x, t), rtol=1e-12)
    near = denoiser.average_velocity(x, t, t - 1e-6)
    np.testing.assert_allclose(near, denoiser.velocity(x, t), rtol=1e-4, atol=1e-4)


def error_of(kind, average, x, t, span, velocity):
    """The error of a network without a head; its own velocity is held, as the loss holds it."""
    own = jax.lax.stop_gradient(average(x, t, jnp.zeros_like(span)))
    return ERRORS[kind](lambda *at: (average(*at), None), Point(x, t, span, velocity, own))[0]


@pytest.mark.parametrize("path", thinned(DEFAULTS.values(), 3), ids=DEFAULTS)
@pytest.mark.parametrize("kind", ERRORS)
def test_a_perfect_network_makes_no_error(kind, path):
    """At any two times and at equal ones, with the flow's own velocity in the place of a pair's."""
    denoiser, x, t, s = gaussian(path)
    average = lambda x, t, span: denoiser.average_velocity(x, t, t - span)  # noqa: E731
    for span in (t - s, jnp.zeros_like(t)):
        error = error_of(kind, average, x, t, span, denoiser.velocity(x, t))
        np.testing.assert_allclose(error, jnp.zeros_like(x), atol=1e-11)
    wrong = error_of(kind, lambda *args: 1.1 * average(*args), x, t, t - s, denoiser.velocity(x, t))
    assert float(jnp.abs(wrong).max()) > 1e-2


SMALL = {
    "network.name": "mlp", "network.width": 8, "network.depth": 1, "network.dtype": "float64", "model.span": True,
    "data.source.name": "digits", "training.objective": "flow_map", "training.weighting": "velocity",
}  # fmt: skip


def small(**settings):
    return experiment(with_settings(load("configs/base.py", []), SMALL | settings))


def drawn(run, n=256):
    image = jax.random.randint(jax.random.key(2), (n, 8, 8, 1), 0, 17, jnp.uint8)
    batch = {"image": image, "label": jnp.arange(n) % 10}
    params = run.init(jax.random.key(0))
    noise = lambda i, leaf: leaf + 0.1 * jax.random.normal(jax.random.key(i), leaf.shape)  # noqa: E731
    leaves, tree = jax.tree.flatten(params)
    params = tree.unflatten([noise(i, leaf) for i, leaf in enumerate(leaves)])
    return params, run.loss.draw((), jax.random.key(1), batch, True)[0]


@pytest.mark.parametrize("kind", thinned(ERRORS, 2))
def test_its_gradient_is_that_of_the_error_alone(kind):
    """Against central differences of |u - target|^2 w with the target and w held at the parameters."""
    run = small(**{"training.flow_map": kind})
    params, batch = drawn(run, 8)
    loss = run.loss
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=float)).reshape(leaf.shape), params)

    def average(params):
        bound = loss.model.bind(params)
        return lambda x, t, span: bound.given({"span": span}).velocity(x, t)

    def error(params):
        c = loss.model.path.at(batch.t).expand(batch.x0)
        x = loss.model.path.perturb(batch.x0, batch.noise, batch.t)
        at = x, batch.t, batch.condition["span"]
        velocity = c.dalpha * batch.x0 + c.dsigma * batch.noise
        return error_of(kind, average(params), *at, velocity), average(params)(*at)

    held, u = error(params)
    weight = 1 / (jnp.sum(held**2, axis=(1, 2, 3)) + 0.01)

    def with_target_held(amount):
        moved = jax.tree.map(lambda leaf, way: leaf + amount * way, params, direction)
        return jnp.sum(weight * jnp.sum((error(moved)[1] - u + held) ** 2, axis=(1, 2, 3)))

    found = jax.grad(lambda params: jnp.sum(loss.examples(params, batch)))(params)
    slope = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(direction), strict=True))
    step = 1e-5
    expected = (with_target_held(step) - with_target_held(-step)) / (2 * step)
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_the_pairs_of_times():
    """Half of them equal, the others two draws in order; all spans to t_min for consistency."""
    _, batch = drawn(small())
    span = np.asarray(batch.condition["span"])
    assert 0.4 < np.mean(span == 0) < 0.6 and (span >= 0).all() and (batch.t - span >= 1e-5).all()
    # Of two uniform draws the later has mean 2/3, the earlier 1/3: within four standard errors of 128 pairs.
    later, span = np.asarray(batch.t)[span > 0], span[span > 0]
    np.testing.assert_allclose([later.mean(), (later - span).mean()], [2 / 3, 1 / 3], atol=4 * 0.236 / 128**0.5)
    _, batch = drawn(small(**{"training.flow_map_whole": 0.5}))
    whole = np.asarray(batch.condition["span"]) == 1 - 1e-5
    assert 0.15 < whole.mean() < 0.35 and (np.asarray(batch.t)[whole] == 1).all()
    _, batch = drawn(small(**{"training.flow_map": "consistency", "training.flow_map_equal": 0.0}))
    np.testing.assert_allclose(batch.condition["span"], batch.t - 1e-5, rtol=1e-12)


LABELLED = {"model.class_conditional": True, "training.label_dropout": 0.25, "training.flow_map_guidance": (1.5, 4.0)}


@pytest.mark.parametrize("taught", [False, True])
def test_guidance_is_learnt(taught):
    """The velocity is v_null + w (v - v_null) of a teacher, or v + (1 - 1/w)(v_g - v_null), w = 1 where it is not."""
    run = small(**LABELLED, **{"model.guidance": True})
    params, batch = drawn(run)
    told, hidden = np.asarray(batch.condition["guidance"]), np.asarray(batch.condition["label"]) == 10
    share, first, last = told.T
    assert 0.1 < hidden.mean() < 0.4 and (share[hidden] == 0).all()
    assert (share[~hidden] >= 1 - 1 / 1.5).all() and (share[~hidden] <= 0.75).all() and np.ptp(share[~hidden]) > 0.3
    spans, here = np.asarray(batch.condition["span"]) > 0, np.asarray(batch.t)
    assert (told[~spans, 1:] == [0, 1]).all() and ((first < 0.5) & (last >= 0.5) & (last - first < 1))[spans].all()
    acts = (first <= here) & (here <= last)
    assert acts.mean() < 0.95
    share, loss = jnp.where(acts, share, 0.0), run.loss
    teacher = jax.tree.map(lambda leaf: 1.5 * leaf, params)
    x = loss.model.path.perturb(batch.x0, batch.noise, batch.t)
    c, label = loss.model.path.at(batch.t).expand(x), {"label": batch.condition["label"]}
    null = {"label": jnp.full_like(label["label"], 10)}
    velocity = lambda params, told: loss.model.bind(params, told).velocity(x, batch.t)  # noqa: E731
    if taught:
        v_null = velocity(teacher, null)
        v = v_null + expand(1 / (1 - share), x) * (velocity(teacher, label) - v_null)
        loss = loss.replace(teacher=Teacher(loss.model, teacher))
    else:
        own = velocity(params, label | {"guidance": jnp.stack([share, 0 * share, 1 + 0 * share], axis=1)})
        v = c.dalpha * batch.x0 + c.dsigma * batch.noise + expand(share, x) * (own - velocity(params, null))
    average = lambda x, t, span: loss.model.bind(params, batch.condition | {"span": span}).velocity(x, t)  # noqa: E731
    square = jnp.sum(error_of("meanflow", average, x, batch.t, batch.condition["span"], v) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss.examples(params, batch), square / (square + 0.01), rtol=1e-9)


MIT = {"network.name": "mit", "network.num_heads": 2, "network.depth": 2, "network.velocity_head": 1}


@pytest.mark.slow
def test_a_head_for_the_velocity():
    """It says the direction of the derivative, also for guidance, and its own error is added."""
    run = small(**MIT, **LABELLED, **{"model.guidance": True, "training.flow_map": "improved"})
    params, batch = drawn(run, 4)
    label, span, told = (batch.condition[name] for name in ("label", "span", "guidance"))
    share = jnp.where((told[:, 1] <= batch.t) & (batch.t <= told[:, 2]), told[:, 0], 0.0)
    at_once = jnp.stack([share, 0 * share, 1 + 0 * share], axis=1)
    x = run.model.path.perturb(batch.x0, batch.noise, batch.t)

    @jax.jit
    def both(x, t, span, label, guidance):
        return run.model.with_velocity(params, x, t, {"span": span, "label": label, "guidance": guidance})

    own = both(x, batch.t, 0 * span, label, at_once)[1]
    null = both(x, batch.t, 0 * span, jnp.full_like(label, 10), jnp.zeros_like(told).at[:, 2].set(1))[1]
    v = batch.noise - batch.x0 + expand(share, x) * (own - null)
    ahead, behind = (both(x + h * own, batch.t + h, span + h, label, told)[0] for h in (1e-5, -1e-5))
    average, velocity = both(x, batch.t, span, label, told)
    errors = average + expand(span, x) * (ahead - behind) / 2e-5 - v, velocity - v
    squares = [jnp.sum(error**2, axis=(1, 2, 3)) for error in errors]
    found = jax.jit(run.loss.examples)(params, batch)
    np.testing.assert_allclose(found, sum(square / (square + 0.01) for square in squares), rtol=1e-7)


def test_a_teacher_that_is_awaited_is_not_forgotten():
    run = small(**{"training.teacher": "runs/teacher"})
    with pytest.raises(UserError, match="teacher = runs/teacher is not read here"):
        run.loss.examples(*drawn(run, 8))


def test_one_guided_call():
    """Of a network that is told of guidance: at one time it acts or not, of a jump the network is told the interval."""
    run = small(**LABELLED, **{"model.guidance": True})
    params, batch = drawn(run, 8)
    plain = run.model.bind(params, {"label": jnp.arange(8)})
    guided = guide(10, 1, (-1.0, 1.0), scale=3.0, interval=(0.2, 0.6), scales=(1.5, 4.0))(plain)
    x, t = batch.noise, jnp.linspace(0.05, 0.95, 8)
    share = jnp.where((t >= 0.2) & (t <= 0.6), 1 - 1 / 3, 0.0)
    told = jnp.stack([share, jnp.zeros(8), jnp.ones(8)], axis=1)
    expected = run.model.bind(params, {"label": jnp.arange(8), "guidance": told}).velocity(x, t)
    np.testing.assert_array_equal(guided.velocity(x, t), expected)
    assert np.any(np.asarray(expected) != plain.velocity(x, t))
    told = jnp.broadcast_to(jnp.array([1 - 1 / 3, 0.2, 0.6]), (8, 3))
    expected = run.model.bind(params, {"label": jnp.arange(8), "guidance": told}).average_velocity(x, t, t / 2)
    np.testing.assert_array_equal(guided.average_velocity(x, t, t / 2), expected)
    for settings, said in ({"scale": 5.0}, "from 1.5 to 4.0"), ({"scale": 2.0, "rescale": 0.5}, "rescale is 0.5"):
        with pytest.raises(UserError, match=said):
            guide(10, 1, (-1.0, 1.0), scales=(1.5, 4.0), **settings)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"training.flow_map_guidance": (1.0, 2.0)}, "label_dropout"),
        ({**LABELLED, "training.flow_map_guidance": (3.0, 2.0)}, "least, largest"),
        (LABELLED, "config.model.guidance=True"),
        ({"model.guidance": True}, "a range of scales"),
        ({"training.objective": "simple", "model.span": False, "training.teacher": "a"}, "which training.objective"),
        ({"model.span": False}, "config.model.span=True"),
        ({"training.objective": "simple"}, "model.span"),
        ({"training.time_sampler.name": "grid"}, "between any two"),
        ({"training.weighting": "simple"}, "set it to 'velocity'"),
        ({"network.name": "ncsnv2"}, "span"),
        (MIT, "which training.flow_map = improved alone"),
        ({**MIT, "network.velocity_head": 2}, "below its depth, 2"),
        ({**MIT, "training.objective": "simple", "model.span": False}, "of a flow map"),
        ({"network.velocity_head": 1}, "velocity_head"),
    ],
)
def test_what_it_cannot_be_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        small(**settings)
