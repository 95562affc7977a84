"""A state in vectors: its way there and back, and that training does the same with it as with trees."""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.config.options import OptimOptions
from score_flow.errors import Preempted
from score_flow.runs.checkpoint import Checkpoints, named
from score_flow.runs.sharding import make_mesh, state_shardings, to_host
from score_flow.training import flat, matrices, optimiser
from score_flow.training.ema import n_averages
from score_flow.training.flat import as_in, by_name, layout_of, tree_of
from score_flow.training.gradients import _as_held, _ready
from score_flow.training.optimiser import layout_for
from score_flow.training.run import initial_state, program_of
from score_flow.training.steps import held
from tests.launch import TINY
from tests.training.fragile import fit, fragile, key_of
from tests.training.test_faults import assert_same
from tests.training.test_matrices import arrays
from tests.training.test_training import distance


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(optimiser, "FLAT_ON", ("cpu",))


def kind(path, shape):
    return matrices.kind(path, len(shape))


def equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("outputs_first", [False, True])
def test_there_and_back(outputs_first):
    """Bitwise, outside of a program and inside, for parameters, moments, and moments of some of them."""
    params = arrays() | {"half": {"kernel": jnp.ones((2, 3), "bfloat16")}, "count": jnp.arange(3)}
    layout = layout_of(params, lambda path, shape: kind(path, shape) if shape != (6, 4) else None, outputs_first)
    packed = layout.packed(params)
    kinds = ["hidden bfloat16", "hidden float32", "matrices float32", "others float32", "others int32"]
    assert sorted(packed.vectors) == kinds and all(vector.ndim == 1 for vector in packed.vectors.values())
    assert {name: leaf.shape for name, leaf in packed.apart.items()} == {"middle/kernel": (6, 4)}
    first = params["down_0"]["conv_0"]["kernel"]
    order = jnp.transpose(first, (3, 0, 1, 2)) if outputs_first else first
    assert np.ravel(order).tobytes() in np.asarray(packed.vectors["hidden float32"]).tobytes()
    equal(tree_of(packed), params)
    equal(jax.jit(lambda tree: tree_of(layout.packed(tree)))(params), params)
    moments, like = (optax.adam(0.1).init(each) for each in (params, packed))
    equal(as_in(like, moments), like)
    equal(tree_of(as_in(like, moments)), moments)
    hidden = by_name(lambda *leaf: matrices.kind(*leaf) == "hidden", params)
    some = jax.tree.map(lambda there, leaf: leaf if there else optax.MaskedNode(), hidden, params)
    equal(tree_of(layout.packed(some)), some)


def test_what_an_optimiser_tells_apart_is_told_of_vectors():
    """A name's answer is that of all in its vector, and of what is apart; what is masked stays so."""
    params = arrays()
    layout = layout_of(params, lambda path, shape: its if (its := kind(path, shape)) != "hidden" else None)
    for f in (matrices.is_matrix, lambda *leaf: matrices.numbers_of(*leaf) is None):
        packed = by_name(f, layout.packed(params))
        each = layout.packed(jax.tree.map(jnp.full_like, params, by_name(f, params)))
        for name, value in (packed.vectors | packed.apart).items():
            assert np.all((each.vectors | each.apart)[name] == value), name
    masked = layout.packed(params).replace(apart=dict.fromkeys(packed.apart, optax.MaskedNode()))
    assert set(map(type, by_name(matrices.is_matrix, masked).apart.values())) == {optax.MaskedNode}


def test_what_lies_in_vectors(on_cpu, monkeypatch):
    """All but large matrices, and but Muon's; nothing where most is large, split, or on another platform."""
    shapes = {"conv": {"kernel": (3, 3, 512, 512)}, "dense": {"kernel": (1024, 1024), "bias": (1024,)}, "gain": ()}
    params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, "float32"), shapes, is_leaf=lambda s: isinstance(s, tuple))
    mesh, adam = make_mesh(False), OptimOptions()
    found = {"/".join(place.path): place.vector for place in layout_for(adam, params, mesh).places}
    assert found == {"conv/kernel": "hidden float32", "dense/kernel": None, "dense/bias": "others float32",
                     "gain": "others float32"}  # fmt: skip
    muon = layout_for(OptimOptions(optimizer="Muon"), params, mesh)
    assert {place.path[0] for place in muon.places if place.vector is None} == {"conv", "dense"}
    assert layout_for(adam, {"dense": params["dense"]}, mesh) is None
    assert layout_for(adam, params, make_mesh(2)) is None
    monkeypatch.setattr(optimiser, "FLAT_ON", ("gpu",))
    assert layout_for(adam, params, mesh) is None


class Network(nn.Module):
    """One that uses its kernels in its dtype alone."""

    dtype: str = "bfloat16"
    casts: ClassVar[bool] = True


def test_parameters_are_given_in_the_dtype_of_their_use():
    """Kernels and the biases beside them, once; what norms, embeddings and other networks use stays as it is."""
    params = arrays({"conv": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "norm": {"scale": (4,), "bias": (4,)},
                     "label": {"embedding": (3, 4)}, "large": {"kernel": (6, 4), "bias": (4,)}})  # fmt: skip
    packed = layout_of(params, lambda path, shape: kind(path, shape) if shape != (6, 4) else None).packed(params)
    given = by_name(lambda path, _: ".".join(path), ready := _ready(packed, Network()))
    short = {name for name, leaf in zip(*map(jax.tree.leaves, (given, ready)), strict=True) if leaf.dtype == "bfloat16"}
    assert short == {"conv.kernel", "conv.bias", "large.bias"}
    equal(ready, jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), params, ready))
    for network in (Network("float32"), nn.Dense(1, dtype="bfloat16")):
        equal(_ready(packed, network), params)
    back = _as_held(packed, ready)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {jnp.dtype("float32")}
    equal(tree_of(back), jax.tree.map(lambda leaf: leaf.astype("float32"), ready))


class Trained:
    """Four steps of a run on some devices: losses and gradient norms, and the state after them, as a tree."""

    def __init__(self, *flags, form="flat", devices=1, k=1):
        config = load("configs/digits.py", [*TINY[1:], *(f"--config.{flag}" for flag in flags)])
        mesh = make_mesh(False, jax.devices()[:devices])
        run = dataclasses.replace(experiment(config), mesh=mesh)
        batch = run.train_source.read(np.arange(4 * 16))
        first = {name: x[:16] for name, x in batch.items()}
        state = jax.jit(functools.partial(initial_state, run, n_averages(config.model)))(run.loss, first)
        layout = layout_for(config.optim, state.params, mesh) if form == "flat" else None
        assert (layout is None) == (form == "tree")
        state = held(state, run.optimiser, layout)
        layouts = state_shardings(mesh, state)
        program, state = program_of(run, config, layouts), jax.device_put(state, layouts)
        rows = []
        for part in range(0, 4, k):
            each = {name: x.reshape(4, 16, *x.shape[1:])[part : part + k] for name, x in batch.items()}
            state, metrics = program(state, each)
            rows.append(np.stack(metrics))
        self.rows, self.flat, self.state = np.concatenate(rows, axis=1), state, to_host(tree_of(state))


def assert_close(one, other, much=1e-6):
    """Losses, norms, parameters, averages and moments, by name, to what the order of a sum leaves open.

    Each of n squares of a norm in float32 passes through at most n additions, in practice through about sqrt(n): 5 000
    parameters, 4e-6 at worst. All else is elementwise.
    """
    np.testing.assert_allclose(one.rows, other.rows, rtol=1e-6)
    assert jax.tree.structure(one.state) == jax.tree.structure(other.state)
    for part in ("params", "ema", "opt_state"):
        assert distance(getattr(one.state, part), getattr(other.state, part)) <= much


CLIPPED = "optim.grad_clip=.5"
OPTIMISERS = [
    ("optim.grad_clip=0",),
    (CLIPPED, "optim.weight_decay=.1"),
    (CLIPPED, "optim.optimizer=AdamW", "optim.weight_decay=.1", "optim.decay_on=matrices", "model.ema_std=(.1,.05)"),
    (CLIPPED, "optim.optimizer=Muon", "optim.weight_decay=.1", "optim.decay_on=matrices"),
    (CLIPPED, "training.microbatches=4", "training.non_finite=skip"),
    (CLIPPED, "network.name=sit", "network.depth=2", "network.num_heads=2", "network.dtype=bfloat16"),
]


@pytest.mark.parametrize("flags", [OPTIMISERS[2], *(pytest.param(f, marks=pytest.mark.slow) for f in OPTIMISERS)])
def test_training_is_that_of_trees(on_cpu, flags):
    ours, trees = Trained(*flags), Trained(*flags, form="tree")
    assert len(jax.tree.leaves(ours.flat.ema[0])) < len(jax.tree.leaves(trees.state.ema[0]))
    assert_close(ours, trees, 1e-4 if "Muon" in str(flags) or "bfloat16" in str(flags) else 1e-6)
    if "optim.grad_clip=0" in flags:
        equal(ours.state, trees.state)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"devices": 8}, {"k": 2}], ids=str)
def test_devices_and_programs_do_not_matter(on_cpu, options):
    flags = (CLIPPED, "optim.weight_decay=.1")
    assert_close(Trained(*flags, **options), Trained(*flags))


# Runs: what they leave is by name, whatever form they train in.


@pytest.fixture(scope="module")
def of_trees(tmp_path_factory):
    """Thirty steps of a run of one number, some of which are not finite, as a tree."""
    workdir = tmp_path_factory.mktemp("trees")
    fit(fragile(), workdir, POLICY, bad=BAD)
    return workdir


POLICY, BAD = "training.non_finite=skip", [key_of(7), key_of(19)]


@pytest.mark.slow
def test_what_a_run_leaves_is_that_of_trees(of_trees, tmp_path, monkeypatch):
    """Bitwise, interrupted twice, and in the one form, the other and the first."""
    run, forms = fragile(), []
    monkeypatch.setattr(flat.Layout, "packed", recorded(flat.Layout.packed, forms))
    for platform, moment in (("cpu", (12, "SIGTERM")), ("gpu", (17, "SIGKILL")), ("cpu", None)):
        monkeypatch.setattr(optimiser, "FLAT_ON", (platform,))
        before = len(forms)
        if moment:
            with pytest.raises((Preempted, LookupError)):
                fit(run, tmp_path, POLICY, bad=BAD, moment=moment)
        else:
            fit(run, tmp_path, POLICY, bad=BAD)
        assert (len(forms) > before) == (platform == "cpu")
    assert_same(tmp_path, of_trees)
    folders = [Checkpoints(workdir / "checkpoints") for workdir in (tmp_path, of_trees)]
    for item in ("params", "ema", "train"):
        one, other = (named(folder.layout(30, item)) for folder in folders)
        assert one == other and not any("vectors" in name for name in one)


def recorded(f, calls):
    return lambda *args: calls.append(args) or f(*args)


@pytest.mark.slow
def test_rollbacks_go_back_to_the_same(on_cpu, tmp_path, monkeypatch):
    policy, bad = ("training.non_finite=rollback", "training.snapshot_freq_for_preemption=10"), [key_of(17)]
    fit(fragile(), tmp_path / "flat", *policy, bad=bad)
    monkeypatch.setattr(optimiser, "FLAT_ON", ())
    fit(fragile(), tmp_path / "trees", *policy, bad=bad)
    assert_same(tmp_path / "flat", tmp_path / "trees")
