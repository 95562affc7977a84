"""VA-VAE: numbers of its own code, its file and the moments of its latents, and scales of each channel."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.data.levels import Pixels
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.networks.autoencoder_kl import AutoencoderKL
from score_flow.pretrained import autoencoder_kl, compvis_autoencoder
from score_flow.pretrained.base import as_dtype, fill
from tests.golden_data import COMMITTED
from tests.pretrained.drawn_weights import drawn
from tests.pretrained.test_autoencoder_kl_weights import SMALL, folder_of, nhwc, params_of, relative_error, written
from tests.pretrained.torch_writer import tensor, write

FOLDER = COMMITTED / "va_vae"
SHAPES = json.loads((FOLDER / "meta.json").read_text())["shapes"]
TRAINED_WITH = {"loss.discriminator.weight": np.ones(3, np.float32), "linear_proj.weight": np.ones(3, np.float32)}


def shapes_of(network):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]


def test_outputs_of_its_own_code():
    network, tensors = compvis_autoencoder.read({"state_dict": drawn(SHAPES) | TRAINED_WITH})
    assert network == AutoencoderKL(channels=(32, 64), layers_per_block=1, latent_channels=4, attends=True)
    shapes = shapes_of(network)
    with jax.enable_x64(True), np.load(FOLDER / "io.npz") as arrays:
        network = network.clone(dtype="float64")
        params = as_dtype(fill(shapes, compvis_autoencoder.layout(shapes), tensors), "float64")
        for method, given, wanted in (("moments", "x", "moments"), ("decode", "z", "decoded")):
            ours = jax.jit(lambda x, method=method: network.apply({"params": params}, x, method=method))
            got = np.asarray(ours(nhwc(arrays[given], "float64"))).transpose(0, 3, 1, 2)
            assert relative_error(got, arrays[wanted]) < 1e-9, wanted


def test_the_published_size():
    network = AutoencoderKL(channels=(128, 128, 256, 256, 512), latent_channels=32, attends=True)
    shapes = shapes_of(network)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 69_836_067
    leaves = compvis_autoencoder.layout(shapes).leaves
    assert leaves["decoder/up_4_2_attention/out/kernel"].names == ("decoder.up.4.attn.2.proj_out.weight",)


def test_what_does_not_fit_is_named():
    tensors = drawn(SHAPES)
    shapes = shapes_of(compvis_autoencoder.read(tensors)[0])
    layout = compvis_autoencoder.layout(shapes)
    del tensors["decoder.up.1.attn.0.q.weight"]
    with pytest.raises(UserError, match=r"decoder.up.1.attn.0.q.weight is missing"):
        fill(shapes, layout, tensors)
    with pytest.raises(UserError, match=r"encoder.mid.block_1.conv1.weight has shape"):
        fill(shapes, layout, drawn(SHAPES) | {"encoder.mid.block_1.conv1.weight": np.ones((64, 64, 3, 1), np.float32)})
    with pytest.raises(UserError, match="no autoencoder of latent-diffusion's code: it has no quant_conv.weight"):
        compvis_autoencoder.read({name: w for name, w in drawn(SHAPES).items() if name != "quant_conv.weight"})


def va_vae_folder(path, mean, std):
    """Its two files, as torch writes them."""

    def saved(file, arrays):
        views, storages = {}, {}
        for i, (name, w) in enumerate(arrays.items()):
            strides = tuple(stride // w.itemsize for stride in w.strides)
            views[name], storages[str(i)] = tensor(w.shape, strides, key=str(i), numel=w.size), w.ravel()
        write(file, views, storages)

    saved(path / autoencoder_kl.VA_VAE, drawn(SHAPES))
    moments = {"mean": np.asarray(mean, np.float32), "std": np.asarray(std, np.float32)}
    saved(path / autoencoder_kl.MOMENTS, {name: w.reshape(1, -1, 1, 1) for name, w in moments.items()})
    return path


@pytest.mark.slow
def test_a_folder_of_its_files(tmp_path):
    mean, std = [0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 4.0]
    network, params, scale, shift = autoencoder_kl.load(va_vae_folder(tmp_path, mean, std))
    assert (scale, shift) == ((0.5, 2.0, 1.0, 0.25), tuple(mean))
    assert autoencoder_kl.weights_of(tmp_path).name == autoencoder_kl.VA_VAE
    normed = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    pixels = Pixels(Scaling(), False, network, params, scale, shift)
    images = network.apply({"params": params}, normed * np.array(std) + np.array(mean), method="decode")
    levels = np.clip(np.round((np.asarray(images) + 1) * 127.5), 0, 255)
    assert np.abs(np.asarray(pixels(normed), float) - levels).max() <= 1  # rounded from float32
    with pytest.raises(UserError, match="allowed: 4 finite ones of each"):
        autoencoder_kl.load(va_vae_folder(tmp_path, mean[:3], std))
    with pytest.raises(UserError, match="allowed: 4 finite ones of each"):
        autoencoder_kl.load(va_vae_folder(tmp_path, mean, [1.0, 0.0, 1.0, 1.0]))
    (tmp_path / autoencoder_kl.MOMENTS).unlink()
    with pytest.raises(UserError, match="and no latents_stats.pt"):
        autoencoder_kl.load(tmp_path)


def test_moments_of_channels_in_diffusers_settings(tmp_path):
    """(latent - mean) scaling_factor / std, as its pipelines undo it; Flux's and Stable Diffusion 3's have a shift."""
    network = SMALL.clone(quant_convs=False)
    tensors = written(network, params_of(network), False)
    plain = {"use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5305}
    loaded = autoencoder_kl.load(folder_of(tmp_path, network, tensors, **plain, shift_factor=0.0609))
    assert loaded[2:] == (1.5305, 0.0609)
    moments = {"latents_mean": [0.0, 1.0, 2.0], "latents_std": [1.0, 2.0, 0.5]}
    loaded = autoencoder_kl.load(folder_of(tmp_path, network, tensors, **plain, **moments))
    np.testing.assert_allclose(loaded[2:], ((1.5305, 0.76525, 3.061), (0.0, 1.0, 2.0)))
    for wrong in ({"latents_mean": [1.0, 2.0]}, {"latents_std": None}):
        with pytest.raises(UserError, match="allowed: 3 numbers"):
            autoencoder_kl.load(folder_of(tmp_path, network, tensors, **plain, **(moments | wrong)))
