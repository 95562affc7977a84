"""Published autoencoders: diffusers' own numbers from diffusers' own files, whichever folders are there."""

import json
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from score_flow.errors import UserError
from score_flow.networks.autoencoder_kl import AutoencoderKL
from score_flow.pretrained import base
from score_flow.pretrained.autoencoder_kl import layout, load, network_of
from tests.golden_data import golden_dir, some

FOLDERS = sorted(file.parent for file in (golden_dir() / "autoencoder_kl").glob("*/config.json"))
every_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
some_folders = pytest.mark.parametrize("folder", some(FOLDERS, 4), ids=lambda folder: folder.name)

SMALL = AutoencoderKL(channels=(4, 8, 8), layers_per_block=1, latent_channels=3, groups=2)
CONFIG = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [4, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "in_channels": 3,
    "latent_channels": 3,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "out_channels": 3,
    "sample_size": 32,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
WRITTEN = {
    base.conv: lambda w: w.transpose(3, 2, 0, 1),
    base.pointwise: lambda w: w.T[..., None, None],
    base.same: lambda w: w,
}


@partial(jax.jit, static_argnums=0)
def run(network, params, x, z, noise):
    """Every stored number of one size, by its name, and the outputs of all modules on the way."""

    def apply(value, method):
        kept = dict(capture_intermediates=lambda module, name: True, mutable="intermediates")
        output, variables = network.apply({"params": params}, value, method=method, **kept)
        return output, variables["intermediates"]

    posterior, encoding = apply(x, "encode")
    sample = posterior.sample(noise)
    images, decoding = apply(jnp.concatenate([z, posterior.mode, sample]), "decode")
    decoded, recon_mode, recon_sample = jnp.split(images, 3)
    outputs = {
        "moments": encoding["moments"][0],
        "mean": posterior.mean,
        "logvar": posterior.log_variance,
        "std": posterior.std,
        "sample": sample,
        "kl": posterior.kl(),
        "decode": decoded,
        "recon_mode": recon_mode,
        "recon_sample": recon_sample,
    }
    return outputs, encoding | decoding


def module_path(network, theirs):
    """Our module whose output is that of one of diffusers' modules."""
    half, _, rest = theirs.partition(".")
    levels = len(network.channels)
    if block := re.fullmatch(r"(down|up)_blocks\.(\d+)", rest):
        direction, i = block[1], int(block[2])
        level, blocks = (
            (i, network.layers_per_block) if direction == "down" else (levels - 1 - i, network.layers_per_block + 1)
        )
        last = f"{direction}_{level}_resample" if i + 1 < levels else f"{direction}_{level}_{blocks - 1}"
        return f"{half}/{last}"
    names = {"mid_block": "middle", "mid_block.attentions.0": "middle/attention", "conv_norm_out": "norm_out"}
    return f"{half}/{names.get(rest, rest)}"


def relative_error(value, reference):
    value, reference = (np.asarray(a, np.float64) for a in (value, reference))
    return np.linalg.norm(value - reference) / np.linalg.norm(reference)


def nhwc(x, dtype):
    return jnp.asarray(x.transpose(0, 2, 3, 1), dtype)


def nchw(x):
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x


@cache
def ours(folder, dtype):
    """Our value of every stored array of a folder, by name; float64 ones under the reference's names."""
    with jax.enable_x64(dtype == "float64"), np.load(folder / "io.npz", allow_pickle=False) as arrays:
        network, params, *_ = load(folder, dtype)
        values = {}
        for size in {key.partition(".")[0] for key in arrays}:
            given = (nhwc(arrays[f"{size}.{name}"], dtype) for name in ("x", "z", "eps"))
            outputs, modules = run(network, params, *given)
            assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype(dtype)}
            values |= {f"{size}.{name}": nchw(value) for name, value in outputs.items()}
            modules = flatten_dict(modules, sep="/")
            for key in arrays:
                if key.startswith(f"{size}.act64."):
                    path = module_path(network, key.split(".", 2)[2])
                    values[key] = nchw(modules[f"{path}/__call__"][0])[:1]
        return values


@some_folders
def test_float64_is_the_references(folder):
    values = ours(folder, "float64")
    with np.load(folder / "io.npz", allow_pickle=False) as arrays:
        doubles = {
            key: key if ".act64." in key else key.removesuffix("64")
            for key in arrays
            if arrays[key].dtype == np.float64
        }
        errors = {key: relative_error(values[name], arrays[key]) for key, name in doubles.items()}
    print(f"{folder.name}: float64 {max(errors.values()):.1e}")
    assert len(errors) > 10 and max(errors.values()) < 1e-9, errors


@some_folders
def test_float32_is_as_near_as_the_references(folder):
    values = ours(folder, "float32")
    with np.load(folder / "io.npz", allow_pickle=False) as arrays:
        singles = [key for key in arrays if f"{key}64" in arrays]
        cost = {key: relative_error(arrays[key], arrays[f"{key}64"]) for key in singles}
        errors = {key: relative_error(values[key], arrays[f"{key}64"]) for key in singles}
    worst = max(errors, key=errors.get)
    print(f"{folder.name}: float32 {errors[worst]:.1e} ({worst}), the reference's {cost[worst]:.1e}")
    assert len(errors) > 10 and all(errors[key] < max(1e-5, 3 * cost[key]) for key in singles), errors


@every_folder
def test_scales_are_the_published_ones(folder):
    meta = json.loads((folder / "meta.json").read_text())
    _, _, scale, shift = load(folder)
    assert (scale, shift) == (meta["scaling_factor"], meta["shift_factor"] or 0.0)


@cache
def params_of(network):
    x = jnp.zeros((1, 4, 4, 3))
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32), shapes)


def written(network, params, old_keys):
    """Our parameters as diffusers' tensors."""
    ours = flatten_dict(params, sep="/")
    tensors = {leaf.names[0]: WRITTEN[leaf.read](ours[path]) for path, leaf in layout(network, old_keys).leaves.items()}
    linear = [name for name in tensors if ".attentions.0." in name and tensors[name].ndim == 4]
    return {name: np.ascontiguousarray(w[..., 0, 0] if name in linear else w) for name, w in tensors.items()}


def folder_of(path, network, tensors, **settings):
    (path / "config.json").write_text(json.dumps(CONFIG | settings))
    save_file(tensors, path / "diffusion_pytorch_model.safetensors")
    return path


@pytest.mark.parametrize("old_keys", [False, True])
@pytest.mark.parametrize("quant_convs", [False, True])
def test_a_folder_holds_every_parameter_once(tmp_path, old_keys, quant_convs):
    network = SMALL.clone(quant_convs=quant_convs)
    tensors = written(network, params_of(network), old_keys)
    settings = {} if quant_convs else {"use_quant_conv": False, "use_post_quant_conv": False}
    folder = folder_of(tmp_path, network, tensors, scaling_factor=1.5, shift_factor=0.25, **settings)
    loaded, params, scale, shift = load(folder)
    assert (loaded, scale, shift) == (network, 1.5, 0.25)
    assert jax.tree.all(jax.tree.map(np.array_equal, params, params_of(network)))
    assert any("query" in name for name in tensors) == old_keys
    assert any("to_out.0" in name for name in tensors) != old_keys


def test_settings_that_a_file_is_silent_about(tmp_path):
    tensors = written(SMALL, params_of(SMALL), True)
    assert load(folder_of(tmp_path, SMALL, tensors))[2:] == (0.18215, 0.0)
    assert load(folder_of(tmp_path, SMALL, tensors, scaling_factor=None))[2:] == (0.18215, 0.0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"act_fn": "relu"}, "act_fn is 'relu'; allowed: 'silu'"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention is False; allowed: True"),
        ({"_class_name": "VQModel"}, "allowed: 'AutoencoderKL'"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"] * 2}, "allowed: .*'DownEncoderBlock2D'"),
        ({"use_quant_conv": False}, "use_post_quant_conv is True; allowed: False"),
        ({"layers_per_blok": 2}, "Did you mean 'layers_per_block'"),
        ({"latent_channels": None}, "latent_channels is None; allowed: positive"),
        ({"block_out_channels": [8, "8"]}, "block_out_channels is .*; allowed: positive"),
        ({"norm_num_groups": 3}, "groups=3"),
    ],
)
def test_other_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        network_of(CONFIG | settings)
    assert "\n" not in str(error.value)


def test_incomplete_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")  # no JSON
    with pytest.raises(UserError, match="holds no diffusion_pytorch_model"):
        load(tmp_path)
    tensors = written(SMALL, params_of(SMALL), False)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match=r"config\.json"):
        load(tmp_path)
    with pytest.raises(UserError, match="scaling_factor is 'one'"):
        load(folder_of(tmp_path, SMALL, tensors, scaling_factor="one"))
    del tensors["quant_conv.bias"]
    tensors["encoder.conv_in.weight"] = tensors["encoder.conv_in.weight"][:, :2]
    with pytest.raises(UserError, match=r"quant_conv\.bias is missing; encoder\.conv_in\.weight has shape"):
        load(folder_of(tmp_path, SMALL, tensors))
