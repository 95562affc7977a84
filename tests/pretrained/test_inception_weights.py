"""InceptionV3's weights: one content in every format, every tensor used once, and refusals that say how to get them."""

import hashlib
import os
import time
from functools import cache

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from score_flow.errors import UserError
from score_flow.pretrained import inception
from score_flow.pretrained.inception import FILE, HOW, SHA256, URL, load, params_of
from score_flow.pretrained.readers import tensors as readers
from score_flow.pretrained.readers import torch_legacy
from tests.pretrained import torch_writer as new
from tests.pretrained.readers import test_torch_legacy as old

FC, CONV, VARIANCE = "fc.weight", "Mixed_6b.branch7x7_2.conv.weight", "Mixed_7c.branch1x1.bn.running_var"
TENSOR = {old: old.legacy_tensor, new: new.tensor}


@cache
def tensors():
    """Every tensor under its published name, each filled with a number of its own."""
    names = {"mean": "running_mean", "variance": "running_var", "kernel": "weight", "scale": "weight", "bias": "bias"}
    published = {}
    for path, leaf in flatten_dict(inception._shapes(), sep=".").items():
        module, _, last = path.replace("fc_bias", "fc.bias").rpartition(".")
        # (in, out) and (h, w, in, out) to torch's (out, in) and (out, in, h, w)
        shape = (*leaf.shape[:-3:-1], *leaf.shape[:-2])
        published[f"{module}.{names[last]}"] = np.broadcast_to(np.float32(len(published) + 1), shape)
        if last == "variance":
            published[f"{module}.num_batches_tracked"] = np.array(0)
    return published


def refusal(file) -> str:
    with pytest.raises(UserError) as error:
        load(file)
    message = str(error.value)
    assert "\n" not in message and URL in message and "--config.eval.extractor.weights=" in message
    return message


def strides(w):
    return tuple(step // w.itemsize for step in w.strides)


def pooled(values, module):
    """The tensors as a torch file writes them, all but the counters views of one storage with their numbers."""
    numbers = np.array([w.flat[0] if w.dtype == np.float32 else 0 for w in values.values()], np.float32)
    views = {
        name: TENSOR[module](w.shape, (0,) * w.ndim, offset=i, numel=len(numbers))
        for i, (name, w) in enumerate(values.items())
    }
    return views, {"0": numbers}


# ---- what is read


@pytest.mark.slow
def test_every_format_has_the_same_parameters(tmp_path):
    full = {name: np.ascontiguousarray(w) for name, w in tensors().items()}
    without_counters = {name: w for name, w in full.items() if "num_batches" not in name}
    files = {ending: tmp_path / f"weights.{ending}" for ending in ("safetensors", "npz", "pth", "old.pth")}
    save_file(full, files["safetensors"])
    np.savez(files["npz"], **without_counters)
    storages = {str(i): w.ravel() for i, w in enumerate(full.values())}
    kinds = {np.dtype(np.float32): "torch.FloatStorage", np.dtype(np.int64): "torch.LongStorage"}
    for ending, module in (("pth", new), ("old.pth", old)):
        tensor = TENSOR[module]
        views = {
            name: tensor(w.shape, strides(w), key=str(i), numel=w.size, kind=kinds[w.dtype])
            for i, (name, w) in enumerate(full.items())
        }
        module.write(files[ending], views, storages)
    expected = params_of(tensors())
    for file in files.values():
        network, params, digest = load(file)
        assert jax.tree.all(jax.tree.map(np.array_equal, params, expected)), file.name
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
        assert (network.dtype, digest) == ("float32", hashlib.sha256(file.read_bytes()).hexdigest())
        file.unlink()
    assert len(set(map(float, (leaf.flat[0] for leaf in jax.tree.leaves(expected))))) == 472
    assert expected["fc"]["kernel"].shape == (2048, 1008)


def test_counters_may_be_there_or_not():
    without = {name: w for name, w in tensors().items() if "num_batches" not in name}
    assert len(tensors()) - len(without) == 94
    assert jax.tree.all(jax.tree.map(np.array_equal, params_of(tensors()), params_of(without)))


def test_the_published_name_carries_the_digest():
    assert FILE.endswith(f"-{SHA256[:8]}.pth") and URL.endswith(FILE) and len(SHA256) == 64


# ---- what is refused


@pytest.mark.parametrize("changes, said", [
    ({FC: None}, "fc.weight is missing"),
    ({CONV: None, VARIANCE: None}, f"{CONV} is missing; {VARIANCE} is missing"),
    ({"AuxLogits.fc.weight": np.ones(3, np.float32)}, "AuxLogits.fc.weight is not part of this network"),
    ({"fc.num_batches_tracked": np.array(0)}, "fc.num_batches_tracked is not part of this network"),
    ({FC: np.ones((1000, 2048), np.float32)}, "fc.weight has shape (1000, 2048)"),  # of the network of 2016
    ({CONV: np.ones((128, 128, 7, 1), np.float32)}, f"{CONV} has shape (128, 128, 7, 1)"),
    ({VARIANCE: np.full(320, np.nan, np.float32)}, f"{VARIANCE} is not finite"),
    ({VARIANCE: np.ones(320, np.int64)}, f"{VARIANCE} is no tensor of real numbers but int64"),
    ({VARIANCE: {"a": 1}}, f"{VARIANCE} is no tensor of real numbers but dict"),
])  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(changes, said):
    changed = {name: w for name, w in (tensors() | changes).items() if w is not None}
    with pytest.raises(UserError) as error:
        params_of(changed)
    assert said in str(error.value)


def test_a_missing_file_is_refused_before_anything_else(tmp_path, monkeypatch):
    def forbidden(*_):
        raise AssertionError("something was done before")

    for step in ("checksum", "read"):
        monkeypatch.setattr(readers, step, forbidden)
    for step in ("params_of", "InceptionV3"):
        monkeypatch.setattr(inception, step, forbidden)
    start = time.monotonic()
    assert f"no such file: {tmp_path}/weights.pth; {HOW}" in refusal(tmp_path / "weights.pth")
    assert "no such file" in refusal(tmp_path)
    assert "no file of weights is given" in refusal("")
    assert time.monotonic() - start < 5


def test_a_damaged_file_of_the_published_name_is_refused(tmp_path):
    for name in (FILE, f"copy-{SHA256[:12]}.pth"):
        (tmp_path / name).write_bytes(torch_legacy.MAGIC + bytes(100))
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert f"damaged: its sha256 is {digest[:16]}" in refusal(tmp_path / name)


@pytest.mark.parametrize("module", [old, new])
def test_files_of_torch_are_told_by_their_content(tmp_path, module):
    """Small ones, every tensor a view of one number: a file four times smaller than its tensors is refused."""
    file = module.write(tmp_path / "weights.bin", *pooled(tensors(), module))
    assert "allowed: " in refusal(file)


def test_other_files_are_refused(tmp_path):
    def said(contents: bytes) -> str:
        (tmp_path / "weights").write_bytes(contents)
        return refusal(tmp_path / "weights")

    assert "is no checkpoint" in said(b"<!DOCTYPE html>")
    assert "cannot be read" in said(torch_legacy.MAGIC + b"\x80\x02")
    assert "cannot be read" in said(b"PK" + bytes(100))
    np.savez(tmp_path / "objects.npz", **{FC: np.array([{"a": 1}], object)})
    assert "not a readable .npz of plain arrays" in refusal(tmp_path / "objects.npz")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    assert "Conv2d_1a_3x3.conv.weight is missing" in refusal(tmp_path / "stats.npz")
    save_file({FC: np.ones((1008, 2048), np.float32)}, tmp_path / "part.safetensors")
    assert "Conv2d_1a_3x3.conv.weight is missing" in refusal(tmp_path / "part.safetensors")
    assert "holds no named tensors" in refusal(old.write(tmp_path / "list.pth", [old.legacy_tensor((6,), (1,))]))


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(10**6))
    monkeypatch.setattr(inception, "MAX_BYTES", 10**6)
    assert "to 8000128 bytes; allowed: at most 1000000" in refusal(tmp_path / "bomb.npz")


@pytest.mark.skipif("FID_WEIGHTS" not in os.environ, reason="FID_WEIGHTS names the published file")
def test_the_published_file():
    """Nobody passes it on: FID_WEIGHTS=/path/pt_inception-2015-12-05-6726825d.pth runs this."""
    _, params, digest = load(os.environ["FID_WEIGHTS"])
    assert digest == SHA256 and len(jax.tree.leaves(params)) == 472
