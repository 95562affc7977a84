"""Muon: which parameters it is for, what it makes of a matrix, and where its state lies; and what decay is on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.plan.compiling import example
from score_flow.build import experiment
from score_flow.config import registries
from score_flow.config.loading import load
from score_flow.config.options import OptimOptions
from score_flow.errors import UserError
from score_flow.networks.flowpp import FlowppDequantiser
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.sharding import make_mesh, state_shardings
from score_flow.training.matrices import RMS, is_matrix, numbers_of
from score_flow.training.optimiser import make_optimiser, optimiser_of, updates_of
from tests.launch import losses, run
from tests.training.test_training import ADAM, distance

RNG = np.random.default_rng(0)
UNET = ("width=32", "channel_mult=(1,2)", "num_res_blocks=1", "attention_resolutions=(4,)")
PROGRESSIVE = ("progressive='output_skip'", "progressive_input='input_skip'")
SMALL = {"adm": UNET, "ddpm": UNET, "ncsnpp": (*UNET, *PROGRESSIVE), "ncsn": ("width=32",), "ncsnv2": ("width=32",),
         "sit": ("depth=2",), "classifier": ("blocks_per_group=1", "channel_multiplier=2")}  # fmt: skip
NAMES = [*registries.NETWORKS.names(), "classifier", "flowpp"]
EVERY = [name if name in ("mlp", "sit") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
FIRST_OR_LAST = ("conv_in", "in", "patches", "conv_out", "out", "embedding", "label")
HIDDEN = {"middle": {"kernel": (6, 4), "bias": (4,)}, "blocks": {"qkv": {"kernel": (3, 8, 24), "bias": (3, 24)}},
          "down_0": {"conv_0": {"kernel": (3, 3, 4, 5)}}}  # fmt: skip
SHAPES = HIDDEN | {"in": {"kernel": (5, 6), "bias": (6,)}, "label": {"embedding": (10, 4)}, "scale": ()}


def arrays(shapes=SHAPES):
    leaf = lambda shape: isinstance(shape, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jnp.asarray(RNG.normal(size=shape), jnp.float32), shapes, is_leaf=leaf)


def names_of(tree):
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


@functools.cache
def parameters(name):
    """Names and shapes of the parameters of a network as the digits have it."""
    if name == "flowpp":
        network = FlowppDequantiser(width=32, components=4, blocks=1, block=("conv", "norm"))
        init = lambda: network.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), jnp.zeros((1, 8, 8, 1)))  # noqa: E731
        return names_of(jax.eval_shape(init)["params"])
    flags = ["model.class_conditional=True", f"network.name={name}"]
    flags += [f"network.{each}" for each in SMALL.get(name, ())]
    if name == "classifier":
        flags = [*flags[1:], "training.objective=classifier", "training.snapshot_sampling=False"]
    run = experiment(load("configs/digits.py", [f"--config.{flag}" for flag in flags]))
    return names_of(jax.eval_shape(run.loss.init, jax.random.key(0), example(run)))


@pytest.mark.parametrize("name", EVERY)
def test_every_network_is_divided(name):
    """All that multiplies between two layers is Muon's, with the axis of its inputs before that of its outputs."""
    found = {path: numbers_of(path, leaf.ndim) for path, leaf in parameters(name).items()}
    for path, numbers in found.items():
        shape = parameters(name)[path].shape
        if path[-1] != "kernel" or path[0] in FIRST_OR_LAST or path[0].endswith(("_input", "_output")):
            assert numbers is None, path
        else:
            sums, outputs = numbers
            stacked = {*range(len(shape))} - {*sums, *outputs}
            assert outputs == (len(shape) - 1,) and len(shape) - 2 in sums, path
            assert stacked == ({0} if path[0] == "blocks" else set()), path
    sizes = {path: leaf.size for path, leaf in parameters(name).items()}
    hidden = sum(sizes[path] for path, numbers in found.items() if numbers)
    assert hidden > 0.5 * sum(sizes.values())
    of_image = [path for path, leaf in parameters(name).items() if 1 in leaf.shape[-2:] and path[-1] == "kernel"]
    assert name == "flowpp" or not any(found[path] for path in of_image)  # one channel


def as_matrices(path, array):
    """Its matrices (.., in, out): of a convolution the taps are rows."""
    array = np.asarray(array, np.float64)
    return array.reshape(-1, array.shape[-1]) if array.ndim == 4 else array


def test_a_hidden_matrix_becomes_the_nearest_orthogonal_one():
    """U V^T of its gradient's decomposition, with 1 replaced by what Newton-Schulz reaches: .7 to 1.2; the others Adam.

    Its root mean square is near .2, that of Adam's updates.
    """
    gradient, rate = arrays(), 0.1
    params = jax.tree.map(jnp.zeros_like, gradient)
    found = {}
    for name in ("Muon", "AdamW"):
        optimiser = make_optimiser(name, **ADAM | {"lr": rate})
        found[name] = names_of(jax.jit(optimiser.update)(gradient, optimiser.init(params), params)[0])
    hidden = 0
    for path, g in names_of(gradient).items():
        if path[-1] != "kernel" or path[0] == "in":
            np.testing.assert_array_equal(found["Muon"][path], found["AdamW"][path])
            continue
        hidden += 1
        g, update = as_matrices(path, g), as_matrices(path, found["Muon"][path])
        u, _, vt = np.linalg.svd(g, full_matrices=False)
        along = np.swapaxes(u, -1, -2) @ update @ np.swapaxes(vt, -1, -2)
        singular = -np.diagonal(along, axis1=-2, axis2=-1) / (rate * RMS * np.sqrt(max(g.shape[-2:])))
        assert singular.min() > 0.65 and singular.max() < 1.25
        diagonal = np.diagonal(along, axis1=-2, axis2=-1)
        np.testing.assert_allclose(np.abs(along).sum(), np.abs(diagonal).sum(), rtol=1e-3)
        np.testing.assert_allclose(np.sqrt((update**2).mean()), rate * RMS, rtol=0.25)
    assert hidden == 3


def test_momentum_is_nesterovs():
    """Two steps on a fixed pair of gradients: the second is U V^T of what optax's formula averages."""
    shape, beta = (5, 5), 0.9
    one, two = ({"middle": {"kernel": jnp.asarray(RNG.normal(size=shape), jnp.float32)}} for _ in range(2))
    optimiser = make_optimiser("Muon", **ADAM | {"lr": 1.0}, momentum=beta)
    state = optimiser.init(one)
    update = jax.jit(optimiser.update)
    _, state = update(one, state, one)
    assert updates_of(state) == 1
    g1, g2 = (np.asarray(g["middle"]["kernel"], np.float64) for g in (one, two))
    mean = beta * (1 - beta) * g1 + (1 - beta) * g2
    average = beta * mean / (1 - beta**3) + (1 - beta) * g2 / (1 - beta**2)
    update = np.asarray(update(two, state, one)[0]["middle"]["kernel"], np.float64)
    u, _, vt = np.linalg.svd(average)
    along = -(u.T @ update @ vt.T) / (RMS * np.sqrt(5))
    assert np.abs(along - np.diag(np.diagonal(along))).max() < 1e-3
    assert np.diagonal(along).min() > 0.65 and np.diagonal(along).max() < 1.25


@pytest.mark.parametrize("name", ["AdamW", "Muon"])
@pytest.mark.parametrize("on", ["all", "matrices"])
def test_decay_is_on_what_is_said(name, on):
    """lr x decay x parameter, and nothing elsewhere: without a gradient there is no other update."""
    params = arrays()
    optimiser = make_optimiser(name, **ADAM | {"lr": 0.5, "weight_decay": 0.1}, decay_on=on)
    updates, _ = jax.jit(optimiser.update)(jax.tree.map(jnp.zeros_like, params), optimiser.init(params), params)
    for path, update in names_of(updates).items():
        p = names_of(params)[path]
        there = on == "all" or (path[-1] == "kernel" and is_matrix(path, p.ndim))
        np.testing.assert_allclose(update, -0.05 * p if there else 0 * p, rtol=1e-6, atol=1e-9, err_msg=str(path))


def test_what_decay_is_on_has_no_state():
    """A run may go on with another."""
    params = arrays()
    trees = [
        jax.tree.structure(make_optimiser("AdamW", **ADAM | {"weight_decay": decay}, decay_on=on).init(params))
        for decay, on in ((0.0, "all"), (0.1, "all"), (0.1, "matrices"))
    ]
    assert trees[0] == trees[1] == trees[2]


@pytest.mark.parametrize("options, words", [
    ({"optimizer": "AdamW", "momentum": 0.9}, "config.optim.momentum is 0.9, which optim.optimizer = AdamW has no use"),
    ({"optimizer": "Adam", "weight_decay": 0.1, "decay_on": "matrices"}, "AdamW or Muon, got Adam"),
    ({"optimizer": "AdamW", "decay_on": "matrices"}, "optim.weight_decay > 0, got 0.0"),
])  # fmt: skip
def test_options_without_a_use_are_refused(options, words):
    with pytest.raises(UserError) as error:
        optimiser_of(OptimOptions(**options), 10)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_networks_without_kernels_are_refused():
    params = {"scale": jnp.ones((4, 4))}
    with pytest.raises(UserError, match=r"Muon, which is for hidden matrices, and no parameter .* is named kernel\.$"):
        make_optimiser("Muon", **ADAM).init(params)
    decay = make_optimiser("AdamW", **ADAM | {"weight_decay": 0.1}, decay_on="matrices")
    with pytest.raises(UserError, match=r"decay_on is 'matrices', and no parameter .*; allowed: all\.$"):
        decay.update(params, decay.init(params), params)


def test_its_state_is_split_and_saved(tmp_path):
    """On eight devices, split, it makes the updates of one; a checkpoint gives it back, its numbers and its layout."""
    shapes = {"middle": {"kernel": (64, 32), "bias": (32,)}, "blocks": {"qkv": {"kernel": (2, 32, 64)}}}
    params, gradient = arrays(shapes), arrays(shapes)
    optimiser = make_optimiser("Muon", **ADAM | {"weight_decay": 0.1})
    alone, _ = jax.jit(optimiser.update)(gradient, optimiser.init(params), params)
    state = jax.eval_shape(optimiser.init, params)
    mesh = make_mesh(fsdp=True)
    layout, of_params = state_shardings(mesh, state), state_shardings(mesh, params)
    split = jax.jit(optimiser.update, in_shardings=(of_params, layout, of_params), out_shardings=(of_params, layout))
    update, after = split(gradient, jax.jit(optimiser.init, out_shardings=layout)(params), params)
    assert distance(update, alone) <= 1e-5
    kernels = [leaf for leaf in jax.tree.leaves(after) if leaf.ndim > 1]
    assert len(kernels) == 2 and all(leaf.addressable_shards[0].data.size == leaf.size // 8 for leaf in kernels)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"train": {"opt_state": after}}, {"step": 1}, wait=True)
    target = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, layout)
    restored = checkpoints.restore(1, {"train": {"opt_state": target}})["train"]["opt_state"]
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(after)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.sharding == other.sharding


@pytest.mark.slow
def test_a_run_of_it_learns_and_goes_on(tmp_path, cache):
    """Stopped and started again it has the losses of one that was not, and they fall."""
    flags = ("--config.optim.optimizer=Muon", "--config.optim.weight_decay=0.01", "--config.optim.decay_on=matrices")
    one, other = tmp_path / "one", tmp_path / "other"
    run(one, *flags, cache=cache)
    run(other, *flags, moment="step:17:SIGTERM", cache=cache, expected=75)
    run(other, *flags, cache=cache)
    assert losses(one) == losses(other)
    found = [losses(one)[step][0] for step in sorted(losses(one))]
    assert np.mean(found[-5:]) < 0.9 * np.mean(found[:5])
