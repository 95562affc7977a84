"""The FID's InceptionV3: another implementation's numbers, TensorFlow 1's resize, and the details that are its own."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from score_flow.model import count_parameters
from score_flow.networks.inception import InceptionV3, StoredNorm, average_pool, max_pool, resize
from tests.golden_data import COMMITTED, golden_dir
from tests.pretrained.inception_weights import params_of

FOLDERS = sorted(file.parent for file in golden_dir().glob("inception*/weights.json"))
SIZE = (299, 299)
TAPS = {"64": "MaxPool_1", "192": "MaxPool_2", "768": "Mixed_6e"}  # features that are means over these
IMAGE = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 598, 897, 3)), jnp.float32)


def images_of(folder):
    return [folder / entry["file"] for entry in json.loads((folder / "meta.json").read_text())["images"]]


def cases():
    """Every image of every folder; all but the first of a folder with make test-all."""
    for folder in FOLDERS:
        for i, file in enumerate(images_of(folder)):
            yield pytest.param(folder, i, marks=[pytest.mark.slow] if i else [], id=f"{folder.name}-{file.stem}")


every_image = pytest.mark.parametrize("folder, i", list(cases()))


def levels(folder, i, dtype="float32"):
    return jnp.asarray(np.asarray(Image.open(images_of(folder)[i])), dtype)[None]


@cache
def arrays_of(folder):
    arrays = {}
    for file in (folder / "io.npz", COMMITTED / folder.name / "spatial.npz"):  # the latter is of one folder
        if file.is_file():
            with np.load(file, allow_pickle=False) as archive:
                arrays |= dict(archive)
    return arrays


@partial(jax.jit, static_argnums=0)
def run(network, params, x):
    """(outputs, output of every block by its published name)."""

    def kept(module, _):
        return len(module.path) == 1 and module.path[0] != "fc"

    outputs, variables = network.apply({"params": params}, x, capture_intermediates=kept, mutable="intermediates")
    blocks = {name: value["__call__"][0] for name, value in variables["intermediates"].items()}
    pools = {"MaxPool_1": "Conv2d_2b_3x3", "MaxPool_2": "Conv2d_4a_3x3"}
    return outputs, blocks | {name: max_pool(blocks[of]) for name, of in pools.items()}


@cache
def ours(folder, i, dtype):
    """Our value, for one image, of every stored array; from the image resized in float32, as the reference's are.

    In float64 also from the image resized in float64: the "tf" ones.
    """
    with jax.enable_x64(dtype == "float64"):
        resized = np.asarray(resize(levels(folder, i), SIZE), dtype)
        given = [resized, np.asarray(resize(levels(folder, i, dtype), SIZE))] if dtype == "float64" else [resized]
        outputs, blocks = run(InceptionV3(dtype), params_of(folder, dtype), np.concatenate(given))
        assert {a.dtype for a in jax.tree.leaves((outputs, blocks))} == {jnp.dtype(dtype)}
        means = {name: np.asarray(block, np.float64).mean(axis=(1, 2)) for name, block in blocks.items()}
        features = {"2048": outputs.pool, "logits": outputs.logits, "logits_unbiased": outputs.unbiased_logits}
        features["spatial"] = outputs.spatial
        features |= {width: means[name] for width, name in TAPS.items()}
    if dtype == "float32":
        return {f"feat_{name}": value[0] for name, value in features.items()}
    found = {f"feat64_{name}": value[0] for name, value in features.items()}
    found |= {f"feat64tf_{name}": value[1] for name, value in features.items()}
    found |= {f"block_mean64_{name}": mean[0] for name, mean in means.items()}
    return found | {f"block_corner64_{name}": block[0, 0, 0] for name, block in blocks.items()}


def relative_error(value, reference):
    value, reference = (np.asarray(a, np.float64) for a in (value, reference))
    return np.linalg.norm(value - reference) / np.linalg.norm(reference)


@every_image
def test_resize_is_the_references_to_the_bit(folder, i):
    """Operation by operation; a compiler may fuse a product and a sum, which rounds once less."""
    arrays, image = arrays_of(folder), levels(folder, i)
    assert np.array_equal(image[0].sum(axis=(0, 1)), arrays[f"img{i}_sum"])
    with jax.disable_jit():
        resized = np.asarray(resize(image, SIZE))[0]
    np.testing.assert_allclose(resized.sum(axis=(0, 1), dtype=np.float64), arrays[f"img{i}_resized_sum64"], rtol=1e-12)
    if f"img{i}_resized_c0" in arrays:
        assert np.array_equal(resized[..., 0], arrays[f"img{i}_resized_c0"])
    if f"img{i}_resized_rows" in arrays:
        rows = resized[[0, 1, 2, 149, 297, 298]].transpose(2, 0, 1)
        assert np.array_equal(rows, arrays[f"img{i}_resized_rows"])


@pytest.mark.slow
@every_image
def test_float64_is_the_references(folder, i):
    values, arrays = ours(folder, i, "float64"), arrays_of(folder)
    doubles = [key for key in arrays if "64_" in key and not key.startswith("pytorchfid")]
    errors = {key: relative_error(values[key], arrays[key][i]) for key in doubles if i < len(arrays[key])}
    worst = max(errors, key=errors.get)
    print(f"{folder.name} image {i}: float64 {errors[worst]:.1e} ({worst}) of {len(errors)} arrays")
    assert {"feat64_2048", "feat64_logits", "feat64_logits_unbiased"} <= set(errors)
    assert max(errors.values()) < 1e-9, errors


@pytest.mark.slow
@every_image
def test_float32_is_as_near_as_the_references(folder, i):
    values, arrays = ours(folder, i, "float32"), arrays_of(folder)
    names = [key.removeprefix("feat_") for key in arrays if key.startswith("feat_")]
    exact = {name: arrays[f"feat64_{name}"][i] for name in names}
    cost = {name: relative_error(arrays[f"feat_{name}"][i], exact[name]) for name in names}
    errors = {name: relative_error(values[f"feat_{name}"], exact[name]) for name in names}
    worst = max(errors, key=errors.get)
    print(f"{folder.name} image {i}: float32 {errors[worst]:.1e} ({worst}), the reference's {cost[worst]:.1e}")
    assert len(names) >= 2 and all(errors[name] < 3 * cost[name] + 16 * np.finfo("float32").eps for name in names)


# ---- the resize


def tensorflow_1(image, size):
    """ResizeBilinear without aligned corners and half-pixel centres, pixel by pixel in the image's dtype."""
    dtype, axes = image.dtype.type, []
    for n, m in zip(image.shape, size, strict=False):
        scale = dtype(np.float32(n) / np.float32(m))
        low = [int(dtype(i) * scale) for i in range(m)]
        axes.append([(k, min(k + 1, n - 1), dtype(i) * scale - dtype(k)) for i, k in enumerate(low)])
    result = np.empty((*size, image.shape[-1]), image.dtype)
    for i, (top, bottom, dy) in enumerate(axes[0]):
        for j, (left, right, dx) in enumerate(axes[1]):
            above = image[top, left] + (image[top, right] - image[top, left]) * dx
            below = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * dx
            result[i, j] = above + (below - above) * dy
    return result


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape, size", [((7, 5), (13, 11)), ((32, 20), (29, 31)), ((9, 9), (4, 3)), ((1, 3), (5, 2))])
def test_resize_is_tensorflow_1s(shape, size, dtype):
    image = np.asarray(IMAGE[0, : shape[0], : shape[1]], dtype)
    with jax.enable_x64(True), jax.disable_jit():
        assert np.array_equal(resize(jnp.asarray(image)[None], size)[0], tensorflow_1(image, size))


def test_resize_to_the_same_size_is_the_identity():
    assert np.array_equal(resize(IMAGE[:, :299, :299], SIZE), IMAGE[:, :299, :299])


def test_resize_down_takes_pixels_and_filters_nothing():
    assert np.array_equal(resize(IMAGE, SIZE), IMAGE[:, ::2, ::3])


def test_resize_of_a_ramp_stops_at_its_last_pixel():
    """Pixel i is at i n / 299; half-pixel centres would be at (i + 1/2) n / 299 - 1/2."""
    ramp = jnp.broadcast_to(jnp.arange(32.0)[:, None, None], (1, 32, 32, 1))
    expected = np.minimum(np.arange(299) * 32 / 299, 31)
    # Positions to 32 are rounded twice, and so is the sum.
    np.testing.assert_allclose(resize(ramp, SIZE)[0, :, 0, 0], expected, atol=32 * 2 * np.finfo("float32").eps)


# ---- the network


@pytest.mark.parametrize("shape, dtype", [((2, 32, 32, 3), "float32"), ((1, 300, 200, 3), "bfloat16")])
def test_any_size_gives_2048_features_and_1008_logits_in_float32(shape, dtype):
    outputs, variables = jax.eval_shape(InceptionV3(dtype).init_with_output, jax.random.key(0), jnp.zeros(shape))
    assert [a.shape for a in outputs] == [(shape[0], n) for n in (2048, 1008, 1008, 2023)]
    assert {a.dtype for a in jax.tree.leaves((outputs, variables))} == {jnp.dtype("float32")}
    # The published file has 95 628 359 bytes: these numbers of 4 bytes in 472 tensors, their names, and 94 counters.
    assert set(variables) == {"params"} and len(flatten_dict(variables)) == 472
    assert count_parameters(variables) == 23_885_392


def test_averages_leave_the_padding_out():
    ones = jnp.ones((1, 4, 5, 2))
    assert np.array_equal(average_pool(ones), ones)
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 1))
    eps = np.finfo("float32").eps
    np.testing.assert_allclose(average_pool(x)[0, 0, 0], x[0, :2, :2].mean(axis=(0, 1)), atol=8 * eps)
    np.testing.assert_allclose(average_pool(x)[0, 1, 1], x[0].mean(axis=(0, 1)), atol=18 * eps)


def test_maxima_halve_or_keep_the_resolution():
    x = -1 - jax.random.uniform(jax.random.key(0), (1, 7, 7, 1))  # zeros around the image would be the largest
    assert np.array_equal(max_pool(x)[0, 0, 0], x[0, :3, :3].max(axis=(0, 1)))
    assert max_pool(x).shape == (1, 3, 3, 1)
    assert np.array_equal(max_pool(x, stride=1, padding="SAME")[0, 0, 0], x[0, :2, :2].max(axis=(0, 1)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_norm(dtype):
    x = (3 + 2 * jax.random.normal(jax.random.key(0), (2, 3, 3, 4))).astype(dtype)
    rng = np.random.default_rng(0)
    scale, bias, mean = rng.normal(size=(3, 4))
    params = {"scale": scale, "bias": bias, "mean": mean, "variance": rng.uniform(0.1, 1, 4)}
    expected = (np.asarray(x, np.float64) - mean) / np.sqrt(params["variance"] + 1e-3) * scale + bias
    y = StoredNorm().apply({"params": jax.tree.map(jnp.float32, params)}, x)
    assert y.dtype == x.dtype
    # Three roundings of terms of at most this size, then one of the result.
    largest = np.abs(expected).max() + np.abs(mean * scale / np.sqrt(params["variance"])).max()
    tolerance = 4 * np.finfo("float32").eps * largest + (0 if dtype == "float32" else largest * 2.0**-8)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=0, atol=tolerance)


def test_equal_networks_are_one_compilation():
    assert InceptionV3() == InceptionV3("float32") and hash(InceptionV3()) == hash(InceptionV3("float32"))
    assert InceptionV3() != InceptionV3("bfloat16")
