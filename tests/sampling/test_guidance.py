"""Guidance against closed forms on Gaussian classes and SiT's stored numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling import ddim, ode
from sampling.base import example_keys
from sampling.guidance import guide
from sampling.guided import Autoguided, ClassifierFree, ClassifierGuided, Extrapolation, Thresholded
from score_flow.errors import UserError
from score_flow.model import Denoiser, Model
from score_flow.networks.mlp import MLP
from score_flow.paths.base import Path
from score_flow.paths.linear import Linear
from score_flow.paths.vp import VP
from score_flow.process.prediction import PREDICTIONS, Estimate
from tests.discover import thinned
from tests.exact import GaussianDenoiser, MixtureDenoiser
from tests.golden_data import golden_dir, load
from tests.paths.variants import DEFAULTS, EPS
from tests.pretrained.imported import Imported, allowed, nhwc, relative_error

MEANS, STD, NULL = np.array([[-0.8, 0.4, 0.1], [0.7, -0.2, 0.5]]), 0.6, 2
T = np.array([0.05, 0.3, 0.6, 0.95])
X = np.random.default_rng(0).normal(0.0, 0.7, (4, 3))
LABEL = np.array([0, 1, 1, 0], np.int32)


@dataclasses.dataclass(frozen=True)
class Classes(Denoiser):
    """N(MEANS[label], STD^2 I); null is their equal mixture or, unmixed, N(mean of means, STD^2 I), and all if deaf."""

    path: Path
    condition: dict | None
    mixed: bool = True
    deaf: bool = False

    def given(self, condition):
        return dataclasses.replace(self, condition=condition)

    def estimate(self, x, t):
        label = self.condition["label"]
        own = GaussianDenoiser(self.path, jnp.asarray(MEANS, float)[jnp.minimum(label, 1)], STD).estimate(x, t)
        centres = jnp.asarray(MEANS if self.mixed else MEANS.mean(0, keepdims=True), float)
        null = MixtureDenoiser(self.path, centres, STD).estimate(x, t)
        hidden = (self.deaf | (label == NULL))[:, None]
        return Estimate(*(jnp.where(hidden, n, o) for n, o in zip(null[:2], own[:2], strict=True)))


def log_density(path, means, x, t):
    """log p_t(x) of an equal mixture, each example at its own time."""
    mixture = MixtureDenoiser(path, jnp.asarray(means, float), STD)
    return jax.vmap(lambda x, t: mixture.log_prob(x[None], t)[0])(x, t)


def log_class(path):
    """log p(y | x_t) of the two classes, in closed form."""

    def log_prob(x, t, label):
        own = [log_density(path, MEANS[k : k + 1], x, t) for k in (0, 1)]
        return jnp.take_along_axis(jax.nn.log_softmax(jnp.stack(own, 1), axis=1), label[:, None], 1)[:, 0]

    return log_prob


def given():
    """x, t and the condition of four examples."""
    return jnp.asarray(X, float), jnp.asarray(T, float), {"label": jnp.asarray(LABEL)}


def close(a, b, condition=1.0):
    """Equal but for a few hundred roundings of float64 numbers, amplified by a condition number."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype == np.float64
    np.testing.assert_allclose(a, b, rtol=0, atol=512 * EPS[True] * condition * max(1.0, np.abs(b).max()))


def consistent(estimate, path, x, t):
    """alpha x0 + sigma noise = x_t."""
    c = path.at(t).expand(x)
    close(c.alpha * estimate.x0 + c.sigma * estimate.noise, x, np.abs(c.sigma * estimate.noise).max())


@pytest.mark.parametrize("path", thinned(DEFAULTS.values(), 3), ids=DEFAULTS)
def test_the_score_is_that_of_the_tilted_density(path):
    """p_t(x | y)^w p_t(x)^(1 - w), differentiated; guidance by the classifier of the same classes is the same."""
    w = 2.5
    with jax.enable_x64(True):
        x, t, condition = given()
        classes = Classes(path, condition)
        free = ClassifierFree(classes, NULL, Extrapolation(w))

        def tilted(x, t, label):
            return log_density(path, MEANS, x, t) + w * log_class(path)(x, t, label)  # p(x | y) ~ p(x) p(y | x)

        guided = ClassifierGuided(Classes(path, condition, deaf=True), log_class(path), w)

        @jax.jit
        def everything(x, t):
            score = jax.grad(lambda x: tilted(x, t, condition["label"]).sum())(x)
            return score, free.score(x, t), free.estimate(x, t), guided.estimate(x, t)

        score, ours, estimate, by_classifier = everything(x, t)
        condition_number = float(1 / path.at(t).sigma.min())
        close(ours, score, condition_number)
        consistent(estimate, path, x, t)
        steep = float((path.at(t).sigma / path.at(t).alpha).max() ** 2)
        for ours, theirs in zip(by_classifier[:2], estimate[:2], strict=True):
            close(ours, theirs, max(condition_number, steep))


@pytest.mark.parametrize("sampler, tolerance", [
    (ode.build(t_min=1e-3, rtol=1e-5, atol=1e-5), 1e-4), (ddim.build(t_max=0.999, n_steps=400), 1.5 / 400),
], ids=["ode", "ddim"])  # fmt: skip
def test_samples_follow_the_tilted_gaussian(sampler, tolerance):
    """Equal variances: the guided flow leads to N(w m_y + (1 - w) m_null, STD^2 I), a shift of the unguided samples.

    Tolerances: ten times the solver's, and a first-order step of DDIM. The samplers stop at t = 0.001.
    """
    w, n, t_min = 3.0, 16, 1e-3
    classes, keys = Classes(Linear(), {"label": jnp.arange(n) % 2}, mixed=False), example_keys(0, jnp.arange(n))
    draws = [ClassifierFree(classes, NULL, Extrapolation(scale)) for scale in (w, 1.0)]
    guided, plain = jax.jit(lambda keys: [sampler(keys, denoiser, (3,)).x for denoiser in draws])(keys)
    expected = (1 - t_min) * (w - 1) * (MEANS - MEANS.mean(0))[np.arange(n) % 2]
    np.testing.assert_allclose(guided - plain, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", PREDICTIONS)
def test_all_readouts_are_guided_alike(name):
    """Extrapolating a network's outputs and decoding, or decoding and extrapolating: for every prediction and path."""
    good, bad = np.random.default_rng(1).normal(size=(2, 4, 3))
    with jax.enable_x64(True):
        x, t, _ = given()
        for path in DEFAULTS.values():
            c = path.at(t).expand(x)
            decoded = [PREDICTIONS[name].decode(jnp.asarray(output), x, c) for output in (good, bad)]
            ours = Extrapolation(3.0)(*decoded, t, c)
            theirs = PREDICTIONS[name].decode(jnp.asarray(good + 2 * (good - bad)), x, c)
            largest = max(1.0, *(float(jnp.abs(e).max()) for pair in decoded for e in pair[:2]))
            for a, b in zip(ours[:2], theirs[:2], strict=True):
                close(a, b, largest)


@functools.cache
def network_denoiser(out_channels=None):
    """A small class-conditional network whose label matters, on images 2 x 2 x 3."""
    model = Model(MLP(width=16, depth=1, num_classes=NULL, out_channels=out_channels), VP(), PREDICTIONS["velocity"])
    condition = {"label": jnp.asarray(LABEL)}
    params = model.init(jax.random.key(0, impl="rbg"), (4, 2, 2, 3), condition)
    params = jax.tree.map(lambda p: p + 0.3 * jnp.sin(7.0 * jnp.arange(p.size).reshape(p.shape)), params)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 2, 2, 3)), jnp.float32)
    return model.bind(params, condition), x, jnp.asarray(T, jnp.float32)


def test_networks_under_jit_vmap_and_jvp():
    """One call of twice the batch; examples do not mix; the derivative is that of the formula."""
    plain, x, t = network_denoiser()
    guided = Thresholded(ClassifierFree(plain, NULL, Extrapolation(2.0, rescale=0.5)), -1.0, 1.0, 0.9)
    whole = jax.jit(guided.velocity)(x, t)

    def alone(x, t, condition):
        return guided.given(jax.tree.map(lambda leaf: leaf[None], condition)).velocity(x[None], t)[0]

    each = jax.jit(jax.vmap(alone))(x, t, plain.condition)
    tolerance = 64 * EPS[False] * float(jnp.abs(jnp.asarray(whole)).max()) / float(plain.path.sigma(t).min())
    np.testing.assert_allclose(each, whole, rtol=0, atol=tolerance)

    null = plain.given({"label": jnp.full(4, NULL)})
    straight = ClassifierFree(plain, NULL, Extrapolation(2.0))
    formulas = (lambda x: straight.velocity(x, t)), (lambda x: 2 * plain.velocity(x, t) - null.velocity(x, t))
    ours, theirs = jax.jit(lambda x: [jax.jvp(f, (x,), (jnp.ones_like(x),)) for f in formulas])(x)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(jnp.abs(b).max())))


def test_one_call_of_twice_the_batch():
    seen = []

    class Counting(Classes):
        def estimate(self, x, t):
            seen.append((x.shape, t.shape, self.condition["label"].shape, self.condition["low_res"].shape))
            return super().estimate(x, t)

    x, _, condition = given()
    condition["low_res"] = jnp.ones((4, 2, 2, 1))
    jax.eval_shape(ClassifierFree(Counting(VP(), condition), NULL, Extrapolation(2.0)).estimate, x, jnp.asarray(0.4))
    assert seen == [((8, 3), (8,), (8,), (8, 2, 2, 1))]


def equal_bits(a, b):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_scale_one_is_the_unguided_denoiser():
    plain, x, t = network_denoiser()
    off = Extrapolation(1.0, rescale=0.7, channels=2)
    assert guide(NULL, 3, (-1.0, 1.0))(plain) is plain
    for guided in (ClassifierFree(plain, NULL, off), Autoguided(plain, plain.given(None), off)):
        assert str(jax.make_jaxpr(guided.estimate)(x, t)) == str(jax.make_jaxpr(plain.estimate)(x, t))
    wide = float(jnp.abs(plain.x0(x, t)).max())
    for percentile in (None, 0.9):
        equal_bits(Thresholded(plain, -wide, wide, percentile).estimate(x, t), plain.estimate(x, t))


def test_the_interval_switches_and_holds_its_ends():
    plain, x, _ = network_denoiser()
    t = jnp.asarray([0.2, 0.25, 0.5, 0.51], jnp.float32)
    full, part = (ClassifierFree(plain, NULL, Extrapolation(3.0, i)).estimate(x, t) for i in ((0.0, 1.0), (0.25, 0.5)))
    bare = plain.estimate(x, t)
    for always, sometimes, never in zip(full[:2], part[:2], bare[:2], strict=True):
        equal_bits(sometimes[1:3], always[1:3])
        # The same network in a batch of another size: a few roundings; far from what guidance changes.
        np.testing.assert_allclose(sometimes[::3], never[::3], rtol=0, atol=64 * EPS[False] * jnp.abs(never).max())
        assert jnp.abs(always[::3] - never[::3]).max() > 1e-3
    good, bad = Estimate(x, x), Estimate(jnp.full_like(x, jnp.nan), jnp.full_like(x, jnp.nan))
    outside = Extrapolation(3.0, (0.6, 0.7))(good, bad, t, plain.path.at(t).expand(x))
    equal_bits(outside[:2], (x, x))


def test_channels_and_variance():
    """The channels beyond the first k, and a learned variance, are the conditional network's."""
    plain, x, t = network_denoiser(out_channels=6)
    null = plain.given({"label": jnp.full(4, NULL)}).estimate(x, t)
    good, ours = plain.estimate(x, t), ClassifierFree(plain, NULL, Extrapolation(3.0, channels=2)).estimate(x, t)
    tolerance = 64 * EPS[False] * float(jnp.abs(good.noise).max() + jnp.abs(good.x0).max())
    for g, b, o in zip(good[:2], null[:2], ours[:2], strict=True):
        np.testing.assert_allclose(o[..., 2:], g[..., 2:], rtol=0, atol=tolerance)
        np.testing.assert_allclose(o[..., :2], (3 * g - 2 * b)[..., :2], rtol=0, atol=8 * tolerance)
    np.testing.assert_allclose(ours.variance, good.variance, rtol=0, atol=tolerance)


@pytest.mark.parametrize("path", thinned(DEFAULTS.values(), 3), ids=DEFAULTS)
@pytest.mark.parametrize("channels", [0, 2])
def test_rescaling_keeps_the_standard_deviation(path, channels):
    with jax.enable_x64(True):
        x, t, condition = given()
        good, null = (Classes(path, condition, deaf=deaf).estimate(x, t) for deaf in (False, True))
        mixes = (Extrapolation(6.0, rescale=phi, channels=channels) for phi in (0.0, 0.5, 1.0))
        bare, half, full = (mix(good, null, t, path.at(t).expand(x)) for mix in mixes)
        used = slice(channels or None)
        close(full.x0[:, used].std(axis=1), good.x0[:, used].std(axis=1))
        assert (jnp.abs(bare.x0[:, used].std(axis=1) - good.x0[:, used].std(axis=1)) > 1e-3).any()
        close(half.x0, (bare.x0 + full.x0) / 2, float(jnp.abs(bare.x0).max()))
        for estimate in (half, full):
            consistent(estimate, path, x, t)


def test_rescaling_a_constant_changes_nothing():
    """One number an example has no standard deviation: no 0/0."""
    x, t = jnp.ones((2, 1)), jnp.full(2, 0.5)
    pair = [Estimate(v * x, v * x) for v in (1.0, 3.0)]
    c = Linear().at(t).expand(x)
    equal_bits(Extrapolation(2.0, rescale=1.0)(*pair, t, c), Extrapolation(2.0)(*pair, t, c))


@pytest.mark.parametrize("path", DEFAULTS.values(), ids=DEFAULTS)
@pytest.mark.parametrize("percentile", [None, 0.6])
def test_thresholds_keep_x_t(path, percentile):
    low, high = -0.3, 0.5
    with jax.enable_x64(True):
        x, t, condition = given()
        classes = Classes(path, condition)
        before, after = (d.estimate(x, t) for d in (classes, Thresholded(classes, low, high, percentile)))
        consistent(after, path, x, t)
        x0 = np.asarray(before.x0)
        if percentile is None:
            expected, inside = np.clip(x0, low, high), (x0 > low) & (x0 < high)
            equal_bits(after.noise[inside], before.noise[inside])
        else:
            z = (x0 - 0.1) / 0.4
            r = np.maximum(1.0, np.quantile(np.abs(z), percentile, axis=1, keepdims=True))
            expected = 0.1 + 0.4 * np.clip(z, -r, r) / r
        close(after.x0, expected)
        assert (x0 < low).any() and (x0 > high).any()


def test_autoguidance_extrapolates_from_the_worse_model():
    """Equal variances: good N(m, s^2), bad N(m', s^2) give N(m + (w - 1)(m - m'), s^2); the bad one gets the label."""
    w = 2.0
    with jax.enable_x64(True):
        x, t, condition = given()
        good, bad = GaussianDenoiser(VP(), 0.5, STD), GaussianDenoiser(VP(), 0.2, STD)
        ours = Autoguided(good, bad, Extrapolation(w)).estimate(x, t)
        for a, b in zip(ours[:2], GaussianDenoiser(VP(), 0.8, STD).estimate(x, t)[:2], strict=True):
            close(a, b)
        pair = Autoguided(Classes(VP(), condition), Classes(VP(), None, mixed=False), Extrapolation(w))
        flipped = {"label": 1 - condition["label"]}
        equal_bits(pair.given(flipped).estimate(x, t)[:2], Classes(VP(), flipped).estimate(x, t)[:2])


def test_classifier_guidance_is_finite_where_nothing_is_known():
    """alpha = 0: no guidance, rather than 0/0."""
    x, _, condition = given()
    plain = Classes(Linear(), condition, deaf=True)
    guided = ClassifierGuided(plain, lambda x, t, label: x.sum(axis=1), 5.0)
    equal_bits(guided.estimate(x, jnp.asarray(1.0))[:2], plain.estimate(x, jnp.asarray(1.0))[:2])


@pytest.mark.parametrize("make, words", [
    (lambda: Extrapolation(2.0, (0.7, 0.2)), "config.guidance.interval"),
    (lambda: Extrapolation(2.0, (0.7,)), "config.guidance.interval"),
    (lambda: Extrapolation(2.0, ("a", "b")), "config.guidance.interval"),
    (lambda: guide(0, 3, (-1.0, 1.0), scale=2.0), "class_conditional"),
    (lambda: guide(NULL, 3, (-1.0, 1.0), channels=4), "config.guidance.channels is 4, but images have 3"),
    (lambda: ClassifierFree(GaussianDenoiser(VP()), 2, Extrapolation(2.0)).x0(jnp.ones((1, 3)), jnp.ones(1)), "label"),
])  # fmt: skip
def test_mistakes_are_one_line(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


FOLDER = "sit/models"
FILES = sorted(f.stem for f in golden_dir().glob(f"{FOLDER}/*.json"))
CASES = [case for case in FILES if "cfg_x" in load(f"{FOLDER}/{case}")[1]]


@pytest.mark.parametrize("x64", thinned([True, False], 2), ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_sits_guided_outputs(case, x64):
    """forward_with_cfg: its first half is conditional; three of four channels guided; time and velocity mirrored."""
    description, arrays = load(f"{FOLDER}/{case}")
    dtype, worst = "float64" if x64 else "float32", 0.0
    names = [name for name in arrays if name.startswith("cfg_out_") and name.endswith("_64") == x64]
    assert names
    with jax.enable_x64(x64):
        imported = Imported(golden_dir() / FOLDER / description["checkpoint"], description["kwargs"], dtype)
        model, half = imported.model(), len(arrays["cfg_y"]) // 2
        params = functools.cache(lambda kind: imported.params(model, kind))
        x, t = nhwc(arrays["cfg_x"][:half], dtype), jnp.asarray(arrays["cfg_t"][:half], dtype)
        condition = {"label": jnp.asarray(arrays["cfg_y"][:half], jnp.int32)}
        null = int(arrays["cfg_y"][-1])
        assert null == description["kwargs"]["num_classes"]
        for name in names:
            scale = float(name.removeprefix("cfg_out_").split("_")[0])
            bound = model.bind(params("ema" if name.endswith("_ema") else "raw"), condition)
            guided = guide(null, 4, (-1.0, 1.0), scale=scale, channels=3)(bound)
            error = relative_error(-guided.velocity(x, 1 - t), arrays[name][:half])
            double = name if x64 else name.removesuffix("_ema") + "_64"
            assert error <= allowed(name, arrays, double), (name, error)
            worst = max(worst, error)
    print(f"{case} {dtype}: {len(names)} arrays, worst relative error {worst:.1e}")
