"""EDM2's network: the published sizes, magnitudes that are kept, and kernels that training keeps at magnitude 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data.pipeline import Batches
from score_flow.errors import UserError
from score_flow.model import count_parameters
from score_flow.networks import edm2
from score_flow.numerics import unit
from score_flow.runs.sharding import batch_sharding
from score_flow.training import optimiser
from score_flow.training.flat import is_flat
from score_flow.training.matrices import unit_kernels
from score_flow.training.run import fresh_state, holding, program_of

LABEL = {"label": jnp.array([0, 2])}
# Of their whole network with 1000 classes, by its own code; on pixels, and on latents.
PUBLISHED = {
    128: (124_710_949, 124_713_253),
    192: (280_209_381, 280_212_837),
    256: (497_803_173, 497_807_781),
    320: (777_492_325, 777_498_085),
    384: (1_119_276_837, 1_119_283_749),
    448: (1_523_156_709, 1_523_164_773),
}


def shapes(network, shape, condition=None):
    """Shapes of the parameters; nothing is computed."""
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[0]), condition)["params"]


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("width", PUBLISHED)
def test_published_sizes(width, channels):
    """Ours has waves, which are no parameters there, and a row for no class; theirs the logarithm of the loss."""
    network = edm2.build(width=width, num_classes=1000)
    ours = count_parameters(shapes(network, (1, 64, 64, channels), {"label": jnp.zeros(1, jnp.int32)}))
    assert ours - 2 * width - 4 * width + 128 == PUBLISHED[width][channels - 3]


@pytest.mark.slow
def test_magnitudes_stay_one_and_the_first_output_is_zero():
    """White noise goes in; within clipping and what few channels vary by, every block hands on a magnitude of 1."""
    network = edm2.build(width=64, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,), num_classes=3)
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    key = jax.random.key(1, impl="rbg")
    out, variables = jax.jit(lambda k: network.init_with_output(k, x, jnp.array([-1.0, 0.5]), LABEL))(key)
    assert not out.any()
    gains = {path: leaf for path, leaf in flatten_dict(variables["params"]).items() if path[-1].endswith("gain")}
    assert all(not leaf.any() for leaf in gains.values()) and ("out_gain",) in gains
    apply = jax.jit(lambda v, x: network.apply(v, x, jnp.array([-1.0, 0.5]), LABEL, capture_intermediates=True))
    _, kept = apply(variables, x)
    found = flatten_dict(kept["intermediates"])
    blocks = {path[0]: h[0] for path, h in found.items() if path[0][:2] in ("do", "up", "mi") and len(path) == 2}
    magnitudes = {name: float(jnp.sqrt(jnp.mean(h**2))) for name, h in blocks.items()}
    assert len(magnitudes) == 2 * 1 + 1 + 2 + 2 * 2 + 1
    assert all(0.75 < magnitude < 1.25 for magnitude in magnitudes.values()), magnitudes


def test_the_parts_keep_magnitudes():
    a, b = jax.random.normal(jax.random.key(0), (2, 4000, 24))
    rms = lambda x: float(jnp.sqrt(jnp.mean(x**2)))  # noqa: E731
    for kept in (edm2.silu(a), edm2.summed(a, b, 0.3), edm2.joined(a, b[:, :8])):
        assert abs(rms(kept) - 1) < 0.01
    parts = edm2.joined(a, b[:, :8])
    assert abs(rms(parts[:, :24]) ** 2 * 24 / (rms(parts[:, 24:]) ** 2 * 8) - 1) < 0.05  # count alike
    mapped = edm2.Map(50)
    kernel = jax.random.normal(jax.random.key(1), (24, 50)) * jnp.arange(1, 51)
    out = mapped.apply({"params": {"kernel": kernel}}, a)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(out**2, axis=0)), 1.0, atol=0.06)


@pytest.mark.slow
def test_a_weight_has_a_gradient_orthogonal_to_it():
    """Its size says nothing but for the 1e-4 that is added to it."""
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 6))
    target = jax.random.normal(jax.random.key(1), kernel.shape)
    gradient = jax.grad(lambda w: jnp.sum(target * edm2.of_norm_one(w, 36)))(kernel)
    along = jnp.sum(gradient * kernel, axis=(0, 1, 2)) / jnp.linalg.norm(kernel.reshape(36, 6), axis=0)
    assert float(jnp.abs(along).max()) < 2e-4 * float(jnp.linalg.norm(gradient.reshape(36, 6), axis=0).max())


@pytest.mark.slow
def test_the_derivative_of_the_norm_is_finite_at_zero():
    gradient = jax.grad(lambda x: unit(x, -1).sum())(jnp.zeros((2, 3)))
    np.testing.assert_allclose(gradient, 1e4, rtol=1e-5)


def test_kernels_alone_are_brought_back():
    random = np.random.default_rng(0)
    params = {"conv": {"kernel": 3 * random.normal(size=(3, 3, 4, 5))}, "gain": np.array(2.0), "table": np.ones((2, 3))}
    back = unit_kernels(jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params))
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(back["conv"]["kernel"] ** 2, axis=(0, 1, 2))), 1.0, rtol=2e-4)
    assert float(back["gain"]) == 2.0 and (back["table"] == 1).all()


@pytest.mark.parametrize("fields, shape, message", [
    ({"width": 96}, (1, 8, 8, 3), "head_channels is 64, which does not divide 96"),
    ({"channel_mult": (1, 2, 2)}, (1, 8, 6, 3), r"multiples of 4.*8, 6"),
])  # fmt: skip
def test_impossible_networks_are_refused(fields, shape, message):
    with pytest.raises(UserError, match=message):
        shapes(edm2.build(**fields), shape)


@pytest.mark.slow
def test_a_step_of_training_ends_at_kernels_of_magnitude_one(monkeypatch):
    """The state stays a tree wherever others lie in vectors: of those no output is normalised."""
    network = ("name=edm2", "width=8", "channel_mult=(1,2)", "num_res_blocks=1", "head_channels=8")
    flags = [f"network.{each}" for each in network] + ["optim.lr=0.5", "optim.warmup=0", "training.batch_size=8"]
    config = load("configs/digits.py", [f"--config.{flag}" for flag in flags])
    run = experiment(config)
    begin, shapes, shardings = fresh_state(run, config)
    monkeypatch.setattr(optimiser, "FLAT_ON", ("cpu",))
    assert not is_flat(holding(run, config, shapes)(begin()).params)
    batches = Batches(run.train_source, 8, seed=0, sharding=batch_sharding(run.mesh, leading=1))
    state, before = begin(), flatten_dict(jax.tree.map(np.asarray, begin().params))
    steps = program_of(run, config, shardings)
    for step in range(3):
        state, _ = steps(state, batches(step, 1))
    batches.close()
    moved = 0
    for path, leaf in flatten_dict(jax.tree.map(np.asarray, state.params)).items():
        if path[-1] == "kernel":
            rms = np.sqrt(np.mean(leaf**2, axis=tuple(range(leaf.ndim - 1))))
            np.testing.assert_allclose(rms, 1.0, atol=3e-4, err_msg=str(path))
            moved += np.abs(leaf - before[path]).max() > 0.1
    assert moved > 10


@pytest.mark.slow
@pytest.mark.parametrize("name, number", [("span", (2,)), ("guidance", (2, 3)), ("augment", (2, 9))])
def test_what_it_is_told_beside_begins_as_if_it_were_not_there(name, number):
    told = {"augment_dim": 9} if name == "augment" else {name: True}
    network, time = edm2.build(width=8, channel_mult=(1, 2), num_res_blocks=1, head_channels=8, **told), jnp.ones(2)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    params = jax.jit(network.init)(jax.random.key(1, impl="rbg"), x, time)["params"]
    params = jax.tree.map(lambda p: p if p.ndim else jnp.ones(()), params)
    gain = params["embedding"].pop(f"{name}_gain")

    @jax.jit
    def out(gain, condition):
        embedding = params["embedding"] | {f"{name}_gain": gain}
        return network.apply({"params": params | {"embedding": embedding}}, x, time, condition)

    condition = {name: jnp.linspace(0.1, 0.9, int(np.prod(number))).reshape(number)}
    without = out(0 * gain, {})
    assert without.any() and jnp.array_equal(out(0 * gain, condition), without)
    assert float(jnp.linalg.norm(out(gain, condition) - without) / jnp.linalg.norm(without)) > 1e-3
