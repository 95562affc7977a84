"""The names of google/ncsnpp-* cover NCSNpp, in the order of diffusers' own conversion; other settings are refused."""

import re
from functools import cache

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from score_flow.errors import UserError
from score_flow.model import Model
from score_flow.networks import ddpm, ncsnpp
from score_flow.paths import ve
from score_flow.pretrained import base
from score_flow.pretrained.layouts import ncsnpp as ncsnpp_layout
from score_flow.pretrained.projects import diffusers_ncsnpp
from score_flow.process.prediction import PREDICTIONS

SOURCE = diffusers_ncsnpp.build()
SCHEDULER = {
    "num_train_timesteps": 2000,
    "snr": 0.15,
    "sigma_min": 0.01,
    "sigma_max": 1348,
    "sampling_eps": 1e-5,
    "correct_steps": 1,
}
SMALL = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.1.1",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [32, 128],
    "center_input_sample": True,
    "down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"],
    "downsample_padding": 1,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1.4142135623730951,
    "norm_eps": 1e-06,
    "norm_num_groups": None,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "fourier",
    "up_block_types": ["AttnSkipUpBlock2D", "SkipUpBlock2D"],
}
CHURCH_256 = SMALL | {
    "block_out_channels": [128, 128, 256, 256, 256, 256, 256],
    "down_block_types": ["SkipDownBlock2D"] * 4 + ["AttnSkipDownBlock2D"] + ["SkipDownBlock2D"] * 2,
    "layers_per_block": 2,
    "sample_size": 256,
    "up_block_types": ["SkipUpBlock2D"] * 2 + ["AttnSkipUpBlock2D"] + ["SkipUpBlock2D"] * 4,
}
BLOCK = re.compile(r"\w+_blocks?(\.\d+)?\.((resnets|attentions)\.\d+|resnet_down|resnet_up)|.*")
WRITTEN = {base.conv: lambda w: w.transpose(3, 2, 0, 1), base.pointwise: lambda w: w.T, base.same: lambda w: w}


@cache
def small():
    """(model, image shape, parameters) of SMALL."""
    overrides = SOURCE.translate(SMALL | SCHEDULER)
    fields = {key.removeprefix("network."): v for key, v in overrides.items() if key.startswith("network.")}
    assert fields.pop("name") == "ncsnpp"
    path = ve.build(*(float(overrides[f"path.{name}"]) for name in ("sigma_min", "sigma_max")))
    model = Model(ncsnpp.build(**fields), path, PREDICTIONS[overrides["model.prediction"]])
    shape = overrides["data.image_shape"]
    shapes = jax.eval_shape(lambda key: model.init(key, (1, *shape)), jax.random.key(0))
    random = np.random.default_rng(0)
    return model, shape, jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32), shapes)


def written():
    """Our parameters as diffusers' tensors."""
    model, shape, params = small()
    ours = flatten_dict(params, sep="/")
    tensors = {
        leaf.names[0]: WRITTEN[leaf.read](ours[path]) for path, leaf in SOURCE.layout(model, shape).leaves.items()
    }
    kernels = [name for name in tensors if name.endswith(("conv_shortcut.weight", "blocks.0.skip_conv.weight"))]
    return tensors | {name: tensors[name][..., None, None] for name in kernels if tensors[name].ndim == 2}


def old(tensors):
    """Under the names of 2022."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, w in tensors.items():
        for new, before in names.items():
            name = name.replace(f".{new}.", f".{before}.")
        renamed[name] = w
    return renamed | {"time_proj.W": tensors["time_proj.weight"]}


@pytest.mark.parametrize("rename", [dict, old])
def test_every_parameter_is_one_tensor_under_both_generations_of_names(rename):
    model, shape, params = small()
    checkpoint = SOURCE.read(rename(written()))
    filled = base.fill(params, SOURCE.layout(model, shape), checkpoint.weights["ema"])
    assert jax.tree.all(jax.tree.map(np.array_equal, filled, params))


def test_names_come_in_the_order_of_the_conversion():
    """diffusers' convert_ncsnpp_original_checkpoint_to_diffusers.py walks score_sde's all_modules.N in this order."""
    model, shape, _ = small()
    theirs = SOURCE.layout(model, shape).leaves
    blocks = {}
    for path, leaf in ncsnpp_layout.torch_layout(model.network, shape).leaves.items():
        number = int(leaf.names[0].split(".")[1])
        module = theirs[path].names[0].rpartition(".")[0]
        blocks.setdefault(number, set()).add(BLOCK.match(module)[0])
    assert [" and ".join(blocks[number]) for number in sorted(blocks)] == [
        "time_proj",
        "time_embedding.linear_1",
        "time_embedding.linear_2",
        "conv_in",
        "down_blocks.0.resnets.0",
        "down_blocks.0.resnet_down",
        "down_blocks.0.skip_conv",
        "down_blocks.1.resnets.0",
        "down_blocks.1.attentions.0",
        "mid_block.resnets.0",
        "mid_block.attentions.0",
        "mid_block.resnets.1",
        "up_blocks.0.resnets.0",
        "up_blocks.0.resnets.1",
        "up_blocks.0.attentions.0",
        "up_blocks.0.skip_norm",
        "up_blocks.0.skip_conv",
        "up_blocks.0.resnet_up",
        "up_blocks.1.resnets.0",
        "up_blocks.1.resnets.1",
        "conv_norm_out",
        "conv_out",
    ]
    # Within a block, the tensors that the conversion pairs.
    pairs = {
        "down_1_0/conv_0/kernel": "conv1.weight",
        "down_1_0/embedding/bias": "time_emb_proj.bias",
        "down_1_0/norm_1/scale": "norm2.weight",
        "down_1_0/shortcut/kernel": "conv_shortcut.weight",
    }
    for path, name in pairs.items():
        assert theirs[path].names == (f"down_blocks.1.resnets.0.{name}",)


def test_published_settings():
    ours = SOURCE.translate(CHURCH_256 | SCHEDULER)
    expected = {
        "network.name": "ncsnpp",
        "network.width": 128,
        "network.channel_mult": (1, 1, 2, 2, 2, 2, 2),
        "network.num_res_blocks": 2,
        "network.attention_resolutions": (16,),
        "network.progressive": "output_skip",
        "network.progressive_input": "input_skip",
        "network.fir": True,
        "model.prediction": "scaled_score",
        "model.time": "log_sigma",
        "model.input": "2x-1",
        "data.image_shape": (256, 256, 3),
        "path.name": "ve",
        "path.sigma_min": 0.01,
        "path.sigma_max": 1348.0,
        "sampling.n_steps": 2000,
        "sampling.snr": 0.15,
    }
    assert {key: ours[key] for key in expected} == expected
    assert not any(key.startswith(("path.", "sampling.")) for key in SOURCE.translate(CHURCH_256))
    assert SOURCE.translate(CHURCH_256 | {"center_input_sample": False})["model.input"] == "none"


def test_other_files_are_not_read():
    assert SOURCE.read({"conv_in.weight": np.zeros(1)}) is None
    assert SOURCE.read([written()]) is None
    without = {name: w for name, w in written().items() if not name.startswith("time_proj")}
    assert SOURCE.read(without) is None  # google/ddpm-*
    with pytest.raises(UserError, match="time_proj.W are one tensor"):
        SOURCE.read(written() | {"time_proj.W": np.zeros(32, np.float32)})


def test_other_networks_are_refused():
    model, shape, _ = small()
    for network, message in [
        (model.network.clone(progressive="residual"), "progressive is 'residual'; diffusers' NCSN.. has 'output_skip'"),
        (ddpm.build(), "embedding is 'positional'"),
    ]:
        with pytest.raises(UserError, match=message):
            SOURCE.layout(Model(network, model.path, model.prediction), shape)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"attention_head_dim": 8}, "attention_head_dim is 8; google/ncsnpp-. has None"),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-05"),
        ({"mid_block_scale_factor": 1}, "mid_block_scale_factor is 1"),
        ({"time_embedding_type": "positional"}, "time_embedding_type is 'positional'"),
        ({"norm_num_groups": 32}, "groups of 32 channels"),
        ({"block_out_channels": [32, 64]}, "groups of 64 channels"),
        ({"block_out_channels": [96, 128]}, "multiples of the first"),
        ({"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "down_block_types is .*; google/ncsnpp-. has 2 of"),
        ({"down_block_types": None}, "down_block_types is None"),
        ({"up_block_types": ["SkipUpBlock2D"] * 2}, "attend at different levels"),
        ({"sample_size": None}, "sample_size is None"),
        ({"norm_epsilon": 1e-6}, "Did you mean 'norm_eps'"),
    ],
)
def test_other_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        SOURCE.translate(SMALL | settings)
    assert "\n" not in str(error.value)


def test_missing_settings_mean_diffusers_defaults():
    for name in ("attention_head_dim", "norm_eps", "time_embedding_type"):
        with pytest.raises(UserError, match=f"{name} is"):
            SOURCE.translate({key: value for key, value in SMALL.items() if key != name})
