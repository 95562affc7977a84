"""The published formats read to the very numbers, told by their content; others are refused in one line."""

import json
import os
import struct

import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict
from PIL import Image
from safetensors.numpy import save_file

from score_flow.errors import UserError
from score_flow.pretrained.readers.files import DIFFUSERS, read
from tests.golden_data import golden_dir
from tests.pretrained.torch_writer import SIX, refusal, tensor, write


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model"


# ---- the golden files


CHECKPOINTS = sorted(p for end in ("pth", "pt", "msgpack", "safetensors") for p in golden_dir().rglob(f"*.{end}"))


def description(checkpoint) -> dict:
    """The json that speaks of a checkpoint."""
    for candidate in sorted(checkpoint.parent.glob("*.json")):
        facts = json.loads(candidate.read_text())
        named = checkpoint.name in (facts.get("checkpoint"), facts.get("bare_checkpoint"))
        if named or candidate.stem in (checkpoint.stem, "meta"):
            return facts
    return {}


def networks(tree: dict) -> list[dict]:
    """Each set of weights in a file of any of the projects, by name."""
    if "optimizer" in tree and "target" in tree["optimizer"]:
        return [flatten_dict(tree["optimizer"]["target"], sep="/"), flatten_dict(tree["params_ema"], sep="/")]
    if "model" in tree:
        return [tree["model"]] + ([] if "shadow_params" in tree["ema"] else [tree["ema"]])
    return [tree]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_golden_checkpoints_hold_what_is_known_of_them(checkpoint):
    tree, facts = read(checkpoint), description(checkpoint)
    for weights in networks(tree):
        assert all(type(w) is np.ndarray and np.isfinite(w).all() for w in weights.values())
        if "state_dict_keys" in facts:
            assert list(weights) == facts["state_dict_keys"]
        if "param_names" in facts:
            assert {f"{key} {w.shape}" for key, w in weights.items()} == set(facts["param_names"])
        if "keys" in facts:
            assert {key: list(w.shape) for key, w in weights.items()} == facts["keys"]
        parameters = dict(weights)
        if "ema_order" in facts:  # the others are buffers; the average comes as a list without names
            learned = [f"module.{key}" for key in facts["ema_order"]]
            parameters = {key: weights[key] for key in [*learned, *map("module.{}".format, facts["frozen_not_in_ema"])]}
            assert [w.shape for w in tree["ema"]["shadow_params"]] == [weights[key].shape for key in learned]
            assert (tree["step"], tree["ema"]["num_updates"]) == (facts["step"], facts["ema_num_updates"])
        if "num_parameters" in facts:
            assert sum(w.size for w in parameters.values()) == facts["num_parameters"]
        large = [w.tobytes() for w in parameters.values() if w.size > 2000]  # in part views of one pooled storage
        assert len(set(large)) == len(large)


# ---- every format


def write_msgpack(file):
    state = {
        "step": 3,
        "optimizer": {"target": {"w": SIX}, "state": {"step": np.float32(3)}},
        "params_ema": {"w": -SIX},
    }
    file.write_bytes(serialization.msgpack_serialize(state))


def write_torch(file):
    write(file, {"w": tensor((6,), (1,)), "step": 3})


def write_safetensors(file):
    save_file({"w": SIX, "b": SIX[:1]}, file)


WRITERS = {"torch": write_torch, "msgpack": write_msgpack, "safetensors": write_safetensors}


@pytest.mark.parametrize("form", WRITERS)
def test_content_and_not_the_name_tells_the_format(form, tmp_path):
    for ending in ("pt", "msgpack", "safetensors", "zip", ""):
        WRITERS[form](tmp_path / f"checkpoint.{ending}")
        tree = read(tmp_path / f"checkpoint.{ending}")
        np.testing.assert_array_equal((tree["optimizer"]["target"] if "optimizer" in tree else tree)["w"], SIX)


@pytest.mark.parametrize("form", WRITERS)
def test_truncated_files_are_refused(form, file):
    WRITERS[form](file)
    whole = file.read_bytes()
    for length in np.random.default_rng(0).integers(0, len(whole), 10):
        file.write_bytes(whole[:length])
        refusal(file)


@pytest.mark.parametrize("form", WRITERS)
def test_flipped_bytes_read_or_are_refused(form, file):
    WRITERS[form](file)
    whole, random, outcomes = np.frombuffer(file.read_bytes(), np.uint8), np.random.default_rng(1), []
    for _ in range(200):
        mutant = whole.copy()
        mutant[random.integers(mutant.size)] ^= random.integers(1, 256, dtype=np.uint8)
        file.write_bytes(mutant.tobytes())
        try:
            outcomes.append(type(read(file)))
        except UserError as error:
            assert "\n" not in str(error)
            outcomes.append(UserError)
    assert set(outcomes) == {dict, UserError}


def test_flax_files_come_back_whole(file, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 10)  # larger arrays are written in parts
    tree = {
        "chunked": SIX.reshape(2, 3),
        "inside": {"chunked": np.arange(7, dtype=np.int64)},
        "bfloat16": np.array([1.5, -2], jnp.bfloat16),
        "numbers": {"scalar": np.float32(0.5), "complex": 1 - 2j, "none": None, "flag": True, "list": [1, 2.5, "a"]},
    }
    contents = serialization.msgpack_serialize(tree)
    assert b"__msgpack_chunked_array__" in contents
    file.write_bytes(contents)
    got = read(file)
    np.testing.assert_array_equal(got["chunked"], tree["chunked"])
    np.testing.assert_array_equal(got["inside"]["chunked"], tree["inside"]["chunked"])
    np.testing.assert_array_equal(got["bfloat16"], np.array([1.5, -2], np.float32), strict=True)
    assert got["numbers"] == tree["numbers"]


def test_bfloat16_of_safetensors_is_float32(file):
    save_file({"w": SIX.astype(jnp.bfloat16)}, file)
    np.testing.assert_array_equal(read(file)["w"], SIX, strict=True)


# ---- what is refused


def extension(code, content) -> bytes:
    return msgpack.packb({"w": msgpack.ExtType(code, content)})


def array(shape, dtype, content=b"\0" * 24) -> bytes:
    return extension(1, msgpack.packb((shape, dtype, content)))


def nested(depth) -> bytes:
    return b"\x81\xa1a" * depth + b"\x80"


CHUNKED = {"__msgpack_chunked_array__": True, "shape": {"0": 9}, "chunks": {"0": SIX}}
TEXT = CHUNKED | {"shape": {"0": 1}, "chunks": {"0": ["text"]}}
HOSTILE_MSGPACK = {
    "foreign extension": (extension(5, b"x"), "extension 5"),
    "timestamp": (msgpack.packb({"t": msgpack.Timestamp(0)}), "Timestamp"),
    "objects": (array((3,), "O"), "array of type b'O'"),
    "records": (array((3,), "i4,f4"), "array of type b'i4,f4'"),
    "another shape": (array((7,), "float32"), "reshape"),
    "huge shape": (array((10**12,), "float32"), "reshape"),
    "no array": (extension(1, b"x"), "cannot be read"),
    "complex of text": (extension(2, msgpack.packb(("a", "b"))), "cannot be read"),
    "chunks of another shape": (serialization.msgpack_serialize(CHUNKED), "reshape"),
    "chunks of text": (msgpack.packb(TEXT), "allowed: numbers"),
    "unprintable name": (msgpack.packb({"a\nb": 1}), "printable"),
    "name that is none": (msgpack.packb({1.5: 1}), "printable"),
    "deep": (nested(100), "deeper than"),
    "deeper than Python recurses": (nested(1000), "cannot be read"),
    "deeper than msgpack": (nested(5000), "cannot be read"),
    "huge containers": (b"\x81\xa1a" + b"\xdd\x7f\xff\xff\xff" * 500, "cannot be read"),
    "large containers": (b"\x81\xa1a" + b"\xdd\0\x10\0\0" * 2**18, "max_array_len"),
    "many values": (msgpack.packb({"a": [0] * 100_000}), "more than"),
}


@pytest.mark.parametrize("case", HOSTILE_MSGPACK)
def test_hostile_msgpack_is_refused(case, file):
    contents, said = HOSTILE_MSGPACK[case]
    file.write_bytes(contents)
    assert said in refusal(file)


def header(**tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + SIX.tobytes()


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HOSTILE_SAFETENSORS = {
    "longer header than file": struct.pack("<Q", 10**7) + b'{"w":',
    "no JSON": struct.pack("<Q", 8) + b"{hello!}",
    "outside": header(w=entry([7], [0, 28])),
    "overlap": header(w=entry([6], [0, 24]), b=entry([3], [12, 24])),
    "hole": header(w=entry([3], [12, 24])),
    "another size": header(w=entry([7], [0, 24])),
    "huge shape": header(w=entry([10**12], [0, 24])),
    "negative shape": header(w=entry([-6], [0, 24])),
    "unknown dtype": header(w=entry([6], [0, 24], "F33")),
    "unprintable name": header(**{"w\n": entry([6], [0, 24])}),
}


@pytest.mark.parametrize("case", HOSTILE_SAFETENSORS)
def test_hostile_safetensors_are_refused(case, file):
    file.write_bytes(HOSTILE_SAFETENSORS[case])
    refusal(file)


def test_other_files_are_refused_with_the_formats(file):
    Image.new("RGB", (4, 4)).save(file, "png")
    for contents in (file.read_bytes(), b"", b"a", b"some text\n", b"int main{}", b"<html>", bytes(100), b"\xff" * 100):
        file.write_bytes(contents)
        assert "allowed: torch's zip (.pt, .pth), safetensors, flax's msgpack" in refusal(file)
    np.savez(file.with_suffix(".npz"), w=SIX)
    assert "not of torch" in refusal(file.with_suffix(".npz"))


def test_files_of_old_torch_are_refused_with_the_conversion(file):
    file.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
    assert "torch.save(torch.load(f), f)" in refusal(file)


def test_missing_files_come_with_the_nearest_name(tmp_path):
    write_torch(tmp_path / "checkpoint_26.pth")
    assert "nearest name is 'checkpoint_26.pth'" in refusal(tmp_path / "checkpoint_25.pth")
    assert "no such file" in refusal(tmp_path / "nowhere" / "checkpoint_26.pth")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    assert "no such file" in refusal(tmp_path / "pipe")


def test_a_folder_of_diffusers_stands_for_its_weights(tmp_path):
    write_safetensors(tmp_path / "model.safetensors")
    assert f"a folder without {DIFFUSERS}" in refusal(tmp_path)
    write_safetensors(tmp_path / DIFFUSERS)
    np.testing.assert_array_equal(read(tmp_path)["w"], SIX)
