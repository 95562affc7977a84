"""DINOv2's weights: both namings and every format give the same parameters; what does not fit is refused by name."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from score_flow.errors import UserError
from score_flow.networks.dinov2 import DINOv2
from score_flow.pretrained.dinov2 import HOW, from_tensors, load
from tests.golden_data import COMMITTED
from tests.pretrained import torch_writer
from tests.pretrained.drawn_weights import drawn

CASES = json.loads((COMMITTED / "dinov2" / "meta.json").read_text())["cases"]
PUBLISHED = {case: drawn(described["shapes"]) for case, described in CASES.items()}
RENAMED = {  # the authors' names, by their parts, in transformers'
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.", "pos_embed": "embeddings.position_embeddings",
    "cls_token": "embeddings.cls_token", "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens", "blocks.": "encoder.layer.",
    ".attn.proj.": ".attention.output.dense.", ".mlp.w12.": ".mlp.weights_in.", ".mlp.w3.": ".mlp.weights_out.",
    ".ls1.gamma": ".layer_scale1.lambda1", ".ls2.gamma": ".layer_scale2.lambda1",
}  # fmt: skip


def transformers(tensors):
    found = {}
    for name, w in tensors.items():
        for theirs, other in RENAMED.items():
            name = name.replace(theirs, other)
        name = re.sub(r"^norm\.", "layernorm.", name)
        if ".attn.qkv." not in name:
            found[name] = w
            continue
        for part, piece in zip(("query", "key", "value"), np.split(w, 3), strict=True):
            found[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece
    return found


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.mark.parametrize("case", CASES)
def test_both_namings_are_one(case):
    (network, params), (other, renamed) = from_tensors(PUBLISHED[case]), from_tensors(transformers(PUBLISHED[case]))
    assert network == other and same(params, renamed)
    assert network == DINOv2(128, *{"plain": (3, False, 0), "gated_registers": (2, True, 4)}[case])


def test_every_format_is_read(tmp_path, capsys):
    given = PUBLISHED["plain"]
    _, expected = from_tensors(given)
    save_file(transformers(given), tmp_path / "model.safetensors")
    np.savez(tmp_path / "weights.npz", **{name: w for name, w in given.items() if name != "mask_token"})
    views = {
        name: torch_writer.tensor(w.shape, tuple(s // 4 for s in w.strides), key=str(i), numel=w.size)
        for i, (name, w) in enumerate(given.items())
    }
    torch_writer.write(tmp_path / "weights.pth", views, {str(i): w for i, w in enumerate(given.values())})
    for file in ("model.safetensors", "weights.npz", "weights.pth"):
        _, params, name = load(tmp_path / file)
        assert same(params, expected) and re.fullmatch("DINOv2 ViT-128x3/14, sha256 [0-9a-f]{8}", name)
        assert f"{file}, sha256" in capsys.readouterr().out


@pytest.mark.parametrize("changes, said", [
    ({"blocks.1.attn.qkv.weight": None}, "blocks.1.attn.qkv.weight is missing"),
    ({"head.weight": np.ones((3, 128), np.float32)}, "head.weight is not part of this network"),
    ({"pos_embed": np.ones((1, 257, 128), np.float32)}, "pos_embed has shape (1, 257, 128)"),
    ({"norm.bias": np.full(128, np.nan, np.float32)}, "norm.bias is not finite"),
    ({"cls_token": None}, "holds no cls_token of three axes"),
    ({"blocks.2.ls1.gamma": np.ones(3, np.float32)}, "blocks.2.ls1.gamma has shape (3,)"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(changes, said):
    changed = {name: w for name, w in (PUBLISHED["plain"] | changes).items() if w is not None}
    with pytest.raises(UserError) as error:
        from_tensors(changed)
    assert said in str(error.value)


def test_a_key_without_its_query_is_refused():
    changed = transformers(PUBLISHED["plain"])
    del changed["encoder.layer.0.attention.attention.query.bias"]
    with pytest.raises(UserError, match=r"attn\.qkv\.bias has no query"):
        from_tensors(changed)


def test_a_missing_file_is_refused_with_the_remedy(tmp_path):
    for path, said in (("", "no file of weights is given"), (tmp_path / "none.pth", "no such file")):
        with pytest.raises(UserError) as error:
            load(path)
        assert said in str(error.value) and HOW in str(error.value) and "\n" not in str(error.value)
