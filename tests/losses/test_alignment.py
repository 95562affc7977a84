"""Representation alignment: its value and gradients, what evaluates without it, and what cannot be aligned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.build import experiment
from score_flow.data.features import FEATURES
from score_flow.errors import UserError
from score_flow.losses.alignment import Aligned
from score_flow.losses.simple import Denoising
from score_flow.model import OWN, PROJECTOR, Model, Preconditioning
from score_flow.networks.sit import SiT
from score_flow.paths.linear import Linear
from score_flow.process.prediction import PREDICTIONS
from score_flow.process.times import uniform
from score_flow.runs.sharding import make_mesh, replicated
from score_flow.training.gradients import at_once, in_slices
from tests.losses.test_losses import settings
from tests.toy_losses import denoising

B, BLOCK, DEPTH = 8, 2, 3
RNG = np.random.default_rng(0)
BATCH = {"image": RNG.normal(size=(B, 4, 4, 2)), FEATURES: RNG.normal(size=(B, 4, 5)).astype(np.float16)}
KEY = jax.random.key(7)


def images_alone(key, batch):
    return batch["image"], None


def loss_of(dtype="float32", weight=0.5):
    network = SiT(patch_size=2, width=8, depth=DEPTH, num_heads=2, dtype=dtype, tap=BLOCK)
    model = Model(network, Linear(), PREDICTIONS["velocity"], Preconditioning("t", 1.0))
    simple = denoising(model, uniform(Linear(), 0.0), "velocity")
    simple = simple.replace(noising=simple.noising.__class__(images_alone, simple.times))
    return Aligned(simple, weight, 6)


def params_of(loss, batch):
    """Parameters of a training that has begun: none is zero."""
    shapes, rng = jax.eval_shape(loss.init, KEY, batch), np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def as_given(dtype):
    return {"image": jnp.asarray(BATCH["image"], dtype), FEATURES: jnp.asarray(BATCH[FEATURES])}


def test_value_is_that_of_the_formula():
    with jax.enable_x64(True):
        loss, batch = loss_of("float64"), as_given("float64")
        params = params_of(loss, batch)
        drawn, key = loss.draw((), KEY, batch, True)

        @jax.jit
        def values(params, drawn, key):
            x = loss.model.path.perturb(drawn.x0, drawn.noise, drawn.t)
            hidden = loss.model.tapped(params, x, drawn.t, None)[1]
            return hidden, loss.simple.at(params, *drawn[:3]), loss.examples(params, drawn, key)

        h, squares, got = (np.asarray(array) for array in values(params, drawn, key))
    for i in range(3):
        layer = params[OWN][PROJECTOR][f"dense_{i}"]
        h = h @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        h = h / (1 + np.exp(-h)) if i < 2 else h
    y = BATCH[FEATURES].astype(np.float64)
    alike = (h * y).sum(-1) / np.linalg.norm(h, axis=-1) / np.linalg.norm(y, axis=-1)
    np.testing.assert_allclose(got, squares - 0.5 * alike.mean(axis=1), rtol=1e-12)
    assert got.dtype == np.float64 and np.abs(alike).max() > 0.3


@pytest.mark.slow
def test_gradient_reaches_the_blocks_before_and_the_projector():
    loss, batch = loss_of(), as_given("float32")
    params = params_of(loss, batch)

    @jax.jit
    def gradients(params):
        drawn, key = loss.draw((), KEY, batch, True)
        squares, both = loss.simple.at, loss.examples
        term = lambda params: jnp.mean(both(params, drawn, key) - squares(params, *drawn[:3], key=key))  # noqa: E731
        return jax.grad(term)(params)

    gradient = gradients(params)
    size = lambda tree: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))  # noqa: E731
    by_block = [size(jax.tree.map(lambda leaf, i=i: leaf[i], gradient["blocks"])) for i in range(DEPTH)]
    assert min(by_block[:BLOCK]) > 1e-3 and max(by_block[BLOCK:]) < 1e-6
    assert size(gradient["out"]) < 1e-6 and size(gradient["patches"]) > 1e-3
    assert min(size(gradient[OWN][PROJECTOR][f"dense_{i}"]) for i in range(3)) > 1e-3


@pytest.mark.slow
def test_without_training_it_is_the_squared_error_and_asks_for_no_features():
    loss, batch = loss_of(), as_given("float32")
    params, plain = params_of(loss, batch), {"image": batch["image"]}
    programs = [str(jax.make_jaxpr(lambda params, of=of: of(params, (), KEY, plain, train=False))(params))
                for of in (loss, loss.simple)]  # fmt: skip
    assert programs[0] == programs[1]
    with pytest.raises(KeyError, match=FEATURES):
        jax.eval_shape(lambda params: loss(params, (), KEY, plain), params)


@pytest.mark.slow
def test_slices_of_a_batch_have_its_gradient():
    loss, batch, mesh = loss_of(), as_given("float32"), make_mesh(devices=jax.devices()[:1])
    params = params_of(loss, batch)
    layout = jax.tree.map(lambda _: replicated(mesh), params)
    with jax.set_mesh(mesh):
        whole, parts = (
            jax.jit(lambda params, make=make: make(loss, params, (), KEY, batch)[::2])(params)
            for make in (at_once(layout), in_slices(4, layout, mesh))
        )
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_without_a_weight_there_is_nothing_of_it():
    run = experiment(settings("network.name=sit"))
    assert type(run.loss) is Denoising and run.model.network.tap == 0 and not run.aligns
    aligned = experiment(settings("network.name=sit", "training.alignment=0.5", "training.alignment_block=1"))
    assert aligned.aligns and aligned.model.network.tap == 1
    shapes = [jax.eval_shape(each.init, KEY) for each in (run, aligned)]  # of who samples and evaluates
    assert shapes[0] == shapes[1]


def test_other_patches_than_tokens_are_refused():
    batch = as_given("float32")
    with pytest.raises(UserError, match="features are of 3 patches, and the network has 4 tokens"):
        jax.eval_shape(loss_of().init, KEY, batch | {FEATURES: batch[FEATURES][:, :3]})


ON = ("training.alignment=0.5", "training.alignment_block=1")
OF_SIT = ("network.name=sit", *ON)


@pytest.mark.parametrize("objective, flags, said", [
    ("simple", ON, "training.alignment is 0.5, which the network mlp cannot do.* networks that have: dit, mit, sit"),
    ("simple", (*OF_SIT, "network.depth=3", "training.alignment_block=4"), "block is 4, and SiT has blocks 1 to 3"),
    ("simple", ("training.alignment_block=4",), "alignment_block is 4, which training.alignment = 0.0 has no use for"),
    ("simple", (*OF_SIT, "data.random_flip=True"), "random_flip is True.*mode=encode with data.random_flip stores"),
    ("simple", (*OF_SIT, "data.random_crop=2"), "random_crop is 2, but .* stored features"),
    ("simple", (*OF_SIT, "training.second_order=0.1"), "second_order is 0.1, which training.alignment = 0.5"),
    ("contrastive", OF_SIT, "alignment is 0.5, which training.objective = contrastive has no use for"),
    ("uncertainty", OF_SIT, "alignment is 0.5, which training.objective = uncertainty has no use for"),
])  # fmt: skip
def test_what_cannot_be_aligned_is_refused(objective, flags, said):
    with pytest.raises(UserError, match=said):
        experiment(settings(*flags, objective=objective))


def test_data_without_features_are_refused():
    with pytest.raises(UserError, match="digits/train has none: make them by --mode=encode"):
        experiment(settings(*OF_SIT)).data_facts  # noqa: B018 - what training asks for first
