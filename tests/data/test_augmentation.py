"""Augmentations: exact where they can be, what was done told by labels, nothing at probability 0 nor at evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data import augmentation
from score_flow.data.augmentation import SHIFT, draw, inverse, labels, random_crop, warp
from score_flow.errors import UserError

H, W = 8, 16
IMAGE = jax.random.normal(jax.random.key(0), (H, W, 3))
KEYS = jax.random.split(jax.random.key(1), 4000)
FLAGS = ["--config.network.name=mlp", "--config.network.width=8", "--config.network.depth=1"]


def parameters(**given):
    """a_0 .. a_7 with some of them set: of the image as it is, all are 0."""
    return np.array([given.get(f"a{i}", 0.0) for i in range(8)], np.float32)


augment = jax.jit(augmentation.augment, static_argnums=2)


@jax.jit
def transformed(a):
    return warp(IMAGE, *inverse(a, H, W))


# ---- EDM's


def test_nothing_is_done_at_probability_0():
    batch = np.stack([IMAGE] * 5)
    images, told = augment(KEYS[:5], batch, 0.0)
    np.testing.assert_array_equal(images, batch)
    np.testing.assert_array_equal(told, np.zeros((5, 9)))


def test_mirrorings_and_shifts_by_whole_pixels_are_exact():
    image = np.asarray(IMAGE)
    np.testing.assert_array_equal(transformed(parameters()), image)
    np.testing.assert_array_equal(transformed(parameters(a0=1.0)), image[:, ::-1])
    np.testing.assert_array_equal(transformed(parameters(a1=1.0)), image[::-1])
    shifted = np.asarray(transformed(parameters(a6=2 / (SHIFT * W), a7=-1 / (SHIFT * H))))
    np.testing.assert_array_equal(shifted[:-1, 2:], image[1:, :-2])
    np.testing.assert_array_equal(shifted[:-1, :2], image[1:, 2:0:-1])  # its mirror image comes in


def test_a_quarter_turn_is_one():
    square = np.asarray(IMAGE)[:, :H]
    turned = jax.jit(lambda a: warp(jnp.asarray(square), *inverse(a, H, H)))(parameters(a3=np.pi / 2))
    np.testing.assert_allclose(turned, np.rot90(square, 1), atol=1e-4)


@pytest.mark.parametrize("given", [{"a2": 1.3}, {"a3": 0.7}, {"a4": 0.4, "a5": -1.1}, {"a6": 0.3, "a7": -0.2}])
def test_linear_images_go_where_the_matrix_says(given):
    """A cubic kernel reproduces a linear function, away from the mirrors: the value at a place is that it came from."""
    n = 65
    places = np.stack(np.meshgrid(np.arange(n) - n // 2, np.arange(n) - n // 2), axis=-1)
    matrix, shift = map(np.asarray, jax.jit(inverse, static_argnums=(1, 2))(parameters(**given), n, n))
    got = np.asarray(jax.jit(warp)(places.astype(np.float32), matrix, shift))
    middle = slice(n // 2 - 8, n // 2 + 9)
    np.testing.assert_allclose(got[middle, middle], ((places - shift) @ matrix.T)[middle, middle], atol=2e-4)


def test_transformations_undo_each_other():
    """A turn and the turn back, a scaling and its inverse: the matrices' product is one."""
    matrix = jax.jit(lambda a: inverse(a, H, W)[0])
    for given in ({"a2": 0.7}, {"a3": 1.2}, {"a4": 0.3, "a5": 0.9}):
        last = list(given)[-1]
        there, back = (matrix(parameters(**(given | {last: sign * given[last]}))) for sign in (1, -1))
        np.testing.assert_allclose(np.asarray(there) @ back, np.eye(2), atol=1e-5)
    assert np.linalg.det(matrix(parameters(a4=0.3, a5=0.9))) == pytest.approx(1, abs=1e-5)


def test_labels_say_what_was_done_and_only_that():
    told = np.asarray(jax.jit(jax.vmap(lambda key: labels(draw(key, 0.25))))(KEYS))
    # label -> transformation; a turn and a squeeze have two labels each, as has a shift
    of = np.array([0, 1, 2, 3, 3, 4, 4, 5, 5])
    share = np.array([(told[:, of == i] != 0).any(axis=1).mean() for i in range(6)])
    wanted = np.array([0.5, 0.125, 0.25, 0.25, 0.25, 0.25])
    assert np.abs(share - wanted).max() < 5 * (0.25 / len(KEYS)) ** 0.5
    given = told[told[:, 2] != 0, 2]
    assert abs(given.mean()) < 5 / len(given) ** 0.5 and abs(given.std() - 1) < 5 / (2 * len(given)) ** 0.5
    turned = told[told[:, 4] != 0]
    np.testing.assert_allclose((turned[:, 3] + 1) ** 2 + turned[:, 4] ** 2, 1, atol=1e-5)
    pairs = np.corrcoef((told[:, [2, 4, 7]] != 0).T)
    assert np.abs(pairs - np.eye(3)).max() < 5 / len(KEYS) ** 0.5  # each by its own chance


@pytest.mark.slow
def test_an_image_depends_on_its_own_key_only():
    batch = np.stack([IMAGE, 2 * IMAGE, IMAGE + 1])
    whole, told = augment(KEYS[:3], batch, 1.0)
    alone, told_alone = augment(KEYS[1:2], batch[1:2], 1.0)
    np.testing.assert_allclose(whole[1:2], alone, atol=1e-5)
    np.testing.assert_allclose(told[1:2], told_alone, atol=1e-6)


# ---- in a run


def run_with(*flags):
    return experiment(load("configs/digits.py", [*FLAGS, *(f"--config.{flag}" for flag in flags)]))


def drawn(run, batch, train):
    """What a loss looks at."""
    return jax.jit(lambda batch: run.loss.noising.draw((), jax.random.key(0), batch, train=train)[0])(batch)


def test_a_network_is_told_in_training_and_never_after():
    """Without the labels its output is that of labels 0, which an image as it is has."""
    run, plain = run_with("data.augment=0.5"), run_with()
    batch = {"image": jnp.asarray(run.train_source.read(np.arange(16))["image"])}
    x0, condition = jax.jit(run.loss.noising.prepare)(jax.random.key(0), batch)
    assert condition["augment"].shape == (16, 9) and x0.shape == (16, 8, 8, 1)
    params = jax.jit(run.loss.init)(jax.random.key(0), batch)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, jax.eval_shape(run.init, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), params)
    denoise = jax.jit(lambda params, condition: run.model.bind(params, condition).x0(x0, jnp.float32(0.5)))
    untold = denoise(params, None)
    np.testing.assert_array_equal(untold, denoise(params, {"augment": np.zeros((16, 9), np.float32)}))
    assert not np.allclose(denoise(params, {"augment": condition["augment"]}), untold)
    seen, expected = (drawn(each, batch, train=False) for each in (run, plain))
    np.testing.assert_array_equal(seen.x0, expected.x0)
    assert seen.condition is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("network.name=ncsnv2", "data.augment=0.1"), "config.data.augment is 0.1, which the network ncsnv2 cannot do"),
        (("data.augment=1.5",), "config.data.augment"),
        (("data.random_crop=8",), "config.data.random_crop is 8; it must be below the images' side, 8"),
        (("data.augment=0.1", "training.objective=vlb"), "config.training.objective 'vlb': allowed 'simple'"),
    ],
)
def test_what_cannot_be_augmented_is_refused(flags, message):
    keep = [] if any("network.name" in flag for flag in flags) else FLAGS
    with pytest.raises(UserError) as error:
        experiment(load("configs/digits.py", [*keep, *(f"--config.{flag}" for flag in flags)]))
    assert message in str(error.value) and "\n" not in str(error.value)


# ---- random crops


def test_crops_are_shifts_of_the_mirrored_image():
    images = np.arange(8 * 8, dtype=np.uint8).reshape(1, 8, 8, 1).repeat(200, 0)
    crop = jax.jit(random_crop, static_argnums=2)
    got = np.asarray(crop(KEYS[:200], images, 2))
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = {padded[i : i + 8, j : j + 8].tobytes() for i in range(5) for j in range(5)}
    assert {image.tobytes() for image in got} <= windows and got.dtype == np.uint8
    assert len({image.tobytes() for image in got}) > 15  # of 25
    np.testing.assert_array_equal(crop(KEYS[3:4], images[:1], 2)[0], got[3])


def test_crops_are_of_training_alone():
    run = run_with("data.random_crop=2")
    batch = {"image": jnp.asarray(run.train_source.read(np.arange(16))["image"])}
    plain = drawn(run_with(), batch, train=False).x0
    np.testing.assert_array_equal(drawn(run, batch, train=False).x0, plain)
    assert not np.array_equal(drawn(run, batch, train=True).x0, drawn(run_with(), batch, train=True).x0)
