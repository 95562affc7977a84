"""torch's files give the very numbers without torch; what could run, lie or never end is refused in one line."""

import json
import pickle
import struct
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.errors import UserError
from score_flow.pretrained.readers.files import read
from score_flow.pretrained.readers.torch_file import STORAGES
from tests.pretrained.torch_writer import SIX, Program, call, name, program, refusal, tensor, write


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.pt"


# ---- torch's format


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("kind", STORAGES)
def test_every_storage_gives_its_numbers(file, kind, order):
    values = np.array([0, 1, 2.5, -3, 100, 0.1]).astype(np.uint8 if kind == "torch.ByteStorage" else STORAGES[kind])
    stored = values.view(f"u{values.itemsize}").astype(f"{'<' if order == 'little' else '>'}u{values.itemsize}")
    views = {"w": tensor((2, 3), (3, 1), kind=kind), "tail": tensor((2,), (1,), offset=4, kind=kind)}
    tree = read(write(file, views, {"0": stored}, order.encode()))
    got = tree["w"]
    assert np.shares_memory(got, tree["tail"])  # whatever the conversion: many views must not take many copies
    expected = values.astype(np.float32) if values.dtype == jnp.bfloat16 else values
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected.reshape(2, 3))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_tensors_are_views_of_their_storage(file, compression):
    views = {
        "whole": (tensor((2, 3), (3, 1)), SIX.reshape(2, 3)),
        "transposed": (tensor((3, 2), (1, 3)), SIX.reshape(2, 3).T),
        "offset": (tensor((2,), (2,), offset=3), SIX[3::2]),
        "expanded": (tensor((4, 2), (0, 1), offset=4), np.tile(SIX[4:], (4, 1))),
        "scalar": (tensor((), (), offset=5), SIX[5]),
        "empty": (tensor((3, 0), (1, 1), offset=6), np.zeros((3, 0))),
    }
    tree = read(write(file, {key: made for key, (made, _) in views.items()}, compression=compression))
    for key, (_, expected) in views.items():
        np.testing.assert_array_equal(tree[key], expected)
        assert tree[key].shape == expected.shape
    assert np.shares_memory(tree["whole"], tree["offset"]) and not tree["whole"].flags.writeable


def test_objects_of_torch_become_plain_data(file):
    state_dict = call("collections.OrderedDict") + program({"w": tensor((6,), (1,))})[1:]
    metadata = program({"_metadata": call("collections.OrderedDict")}) + b"b"
    tree = {
        "model": Program(state_dict + metadata),
        "parameter": call("torch._utils._rebuild_parameter", tensor((6,), (1,)), True, call("collections.OrderedDict")),
        "args": Program(name("argparse.Namespace") + b")\x81" + program({"lr": 1e-4, "ema": None}) + b"b"),
        "extras": [call("torch.device", "cuda", 0), call("torch.Size", (2, 3)), name("torch.float16"), -(2**70), True],
        0: Program(program(("twice",)) + b"q\x07" + b"h\x07" + b"\x86"),  # one remembered tuple, in a pair
    }
    got = read(write(file, tree))
    assert type(got["model"]) is dict and list(got) == list(tree)
    np.testing.assert_array_equal([got["model"]["w"], got["parameter"]], [SIX, SIX])
    assert got["args"] == {"lr": 1e-4, "ema": None} and got["extras"] == ["cuda", (2, 3), "float16", -(2**70), True]
    assert got[0] == (("twice",), ("twice",))


def test_later_protocols_read(file):
    value = {"betas": (0.9, 0.999), "names": ["a", "b"], "deep": {"n": (1, 2, 3, 400, 70000)}}
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert read(write(file, Program(pickle.dumps(value, protocol)[2:-1]))) == value


def test_files_of_torch_itself_read(file):
    torch = pytest.importorskip("torch")
    pooled = torch.randn(64)
    tree = {
        "views": [pooled[3:9].view(2, 3), pooled[::2], pooled[:4].expand(3, 4), torch.nn.Parameter(pooled[:5])],
        "kinds": [pooled.to(getattr(torch, np.dtype(kind).name)) for kind in STORAGES.values()],
        "state_dict": torch.nn.Linear(3, 2).state_dict(),
    }
    torch.save(tree, file)
    got = read(file)
    for ours, theirs in zip(got["views"] + got["kinds"], tree["views"] + tree["kinds"], strict=True):
        theirs = theirs.detach()
        np.testing.assert_array_equal(ours, (theirs.float() if theirs.dtype == torch.bfloat16 else theirs).numpy())
    np.testing.assert_array_equal(got["state_dict"]["weight"], tree["state_dict"]["weight"].numpy())


# ---- pickles that do more than hold weights


COMMAND = "touch canary"
POSIX, SYSTEM = program("posix"), program("system")
LIVE = {  # by the instruction that would run the command
    "REDUCE": call("posix.system", COMMAND),
    "INST": b"(" + program(COMMAND) + b"iposix\nsystem\n",
    "OBJ": b"(" + name("posix.system") + program(COMMAND) + b"o",
    "BUILD": name("argparse.Namespace")
    + b")\x81"
    + program({"__setstate__": name("posix.system")})
    + b"b"
    + program(COMMAND)
    + b"b",
    "STACK_GLOBAL": POSIX + SYSTEM + b"\x93" + program((COMMAND,)) + b"R",
    "STACK_GLOBAL by memo": SYSTEM + b"q\x01" + POSIX + b"q\x00" + b"h\x00h\x01\x93" + program((COMMAND,)) + b"R",
    "STACK_GLOBAL by overwritten memo": program(["collections", "OrderedDict"])
    + (POSIX + b"\x94" + SYSTEM + b"r\x01\x00\x00\x00" + POSIX + b"q\x00" + b"h\x00h\x01\x93")
    + (program((COMMAND,)) + b"R"),
    "as a value's argument": program({"w": call("collections.OrderedDict", [("w", call("posix.system", COMMAND))])}),
}
NAMED = {
    "NEWOBJ": (name("subprocess.Popen") + program((COMMAND,)) + b"\x81", "subprocess.Popen"),
    "NEWOBJ_EX": (name("subprocess.Popen") + program(()) + program({"args": COMMAND}) + b"\x92", "subprocess.Popen"),
    "builtins": (call("builtins.eval", "1"), "builtins.eval"),
    "an attribute of what is admitted": (
        program("torch._utils") + program("_rebuild_tensor_v2.__globals__") + b"\x93",
        "torch._utils._rebuild_tensor_v2.__globals__",
    ),
    "a function of torch": (call("torch.load", "x"), "torch.load"),
    "only named": (name("posix.system"), "posix.system"),
    "EXT1": (b"\x82\x01", "EXT1"),
    "POP": (program(1) + program(2) + b"0", "POP"),
    "PERSID": (b"P" + b"('storage', 'x')\n", "('storage',.'x')"),
    "a call of a name": (name("torch.float32") + b")R", "no function"),
    "a call of a storage class": (name("torch.FloatStorage") + b")R", "no function"),
    "a storage class as a value": (name("torch.FloatStorage"), "no data"),
    "a function as a value": (program([name("torch.Size")]), "no data"),
    "attributes of a tensor": (tensor((6,), (1,)) + program({"x": 1}) + b"b", "attributes"),
}


@pytest.mark.parametrize("attack", LIVE)
def test_code_is_refused_by_name_and_not_run(file, attack, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    pickle.loads(b"\x80\x02" + LIVE[attack] + b".")  # the attack is real: pickle's own machine falls for it
    assert canary.exists()
    canary.unlink()
    assert "'posix.system', which is code" in refusal(write(file, Program(LIVE[attack])))
    assert not canary.exists()


@pytest.mark.parametrize("attack", NAMED)
def test_what_weights_do_not_need_is_refused_by_name(file, attack):
    hostile, said = NAMED[attack]
    assert said in refusal(write(file, Program(hostile)))


@pytest.mark.parametrize(
    "identity",
    [
        *(7, "storage", (), ("storage",), None, {}, ["storage", 1, 2, 3, 4]),
        ("module", name("torch.FloatStorage"), "0", "cpu", 6),
        ("storage", "torch.FloatStorage", "0", "cpu", 6),
        ("storage", name("torch.float32"), "0", "cpu", 6),
        ("storage", name("torch.FloatStorage"), 0, "cpu", 6),
        ("storage", name("torch.FloatStorage"), "0", "cpu", "6"),
        ("storage", name("torch.FloatStorage"), "0", "cpu", 6, None),
    ],
    ids=repr,
)
def test_persistent_identities_of_odd_shape_are_refused(file, identity):
    assert "no storage" in refusal(write(file, Program(program(identity) + b"Q")))


# ---- tensors and zips that lie


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (tensor((7,), (1,)), "outside its storage"),
        (tensor((6,), (1,), offset=1), "outside its storage"),
        (tensor((2, 3), (4, 1)), "outside its storage"),
        (tensor((), (), offset=6), "outside its storage"),
        (tensor((2,), (-1,), offset=3), "outside its storage"),
        (tensor((-2,), (1,)), "outside its storage"),
        (tensor((2,), (1,), offset=-1), "outside its storage"),
        (tensor((2,), (2**62,)), "outside its storage"),
        (tensor((10**12,), (0,)), "4000000000000 bytes"),
        (tensor((10**9, 10**9, 10**9), (0, 0, 0)), "cannot be read"),
        (tensor((0, 10**30), (1, 1)), "cannot be read"),
        (tensor((2, 3), (1,)), "something else than"),
        (tensor((2.0,), (1,)), "something else than"),
        (tensor((True,), (1,)), "something else than"),
        (tensor((1,) * 100, (1,) * 100), "cannot be read"),
        (tensor((6,), (1,), numel=7), "24 bytes for 7 elements"),
        (tensor((6,), (1,), numel=-6), "24 bytes for -6 elements"),
        (tensor((6,), (1,), numel=10**12), "24 bytes for 1000000000000 elements"),
        (tensor((3,), (1,), kind="torch.DoubleStorage"), "24 bytes for 6 elements"),
        (tensor((6,), (1,), key="1"), "archive/data/1"),
        (tensor((6,), (1,), key="../data.pkl"), "archive/data/../data.pkl"),
        ([tensor((6,), (1,)), tensor((3,), (1,), kind="torch.DoubleStorage", numel=3)], "two ways"),
        (call("torch._utils._rebuild_tensor_v2", [1, 2], 0, (2,), (1,), False, None), "something else than"),
    ],
)
def test_tensors_outside_their_storage_are_refused(file, made, said):
    assert said in refusal(write(file, made))


HOSTILE_TREES = {
    "deep list": (b"]" * 10_000 + b"a" * 9_999, "deeper than"),
    "deep tuple": (b")" + b"\x85" * 10_000, "deeper than"),
    "deep key": (b"})" + b"\x85" * 10_000 + b"Ns", "names and numbers"),
    "cycle": (b"]q\x00h\x00a", "deeper than"),
    "endless sharing": (b"]" + b"q\x00h\x00\x86" * 60, "more than"),
    "unprintable name": (program({"w\n\x1b[31m": 1}), "printable"),
    "name that is none": (b"}NNs", "names and numbers"),
    "items of a list": (b"]NNs", "names and numbers"),
    "append to a tuple": (b")Na", "no list"),
    "stack underflow": (b"R", "cannot be read"),
    "no mark": (b"e", "cannot be read"),
    "unknown memo": (b"h\x05", "cannot be read"),
    "two values": (b"NN", "cannot be read"),
}


@pytest.mark.parametrize("tree", HOSTILE_TREES)
def test_programs_that_make_no_tree_are_refused(file, tree):
    hostile, said = HOSTILE_TREES[tree]
    assert said in refusal(write(file, Program(hostile)))


def zipped(file, **contents):
    with zipfile.ZipFile(file, "w") as archive:
        for member, content in contents.items():
            archive.writestr(member, content)
    return file


def test_zips_that_torch_does_not_write_are_refused(file):
    value = b"\x80\x02N."
    beside = ({"../b": b""}, {"/b": b""}, {"b": b""}, {"b/data.pkl": value})
    for members in ({}, {"a/x": b""}, {"../data.pkl": value}, {"/data.pkl": value}, *beside):
        assert "not of torch" in refusal(
            zipped(file, **({"a/data.pkl": value} if members in beside else {}), **members)
        )
    assert "byte order" in refusal(write(file, None, order=b"middle"))
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert "neither stored nor deflated" in refusal(write(file, [0] * 1000, compression=compression))


def test_a_zip_bomb_takes_no_memory(file):
    size = 2**26
    write(file, tensor((6,), (1,)), {"0": np.zeros(size, np.uint8)}, compression=zipfile.ZIP_DEFLATED)
    honest = file.read_bytes()
    lying = honest.replace(struct.pack("<I", size), struct.pack("<I", 24))  # the size in both of its headers
    for contents, said in ((honest, "unpacks to 6710"), (lying, "Bad CRC-32")):
        file.write_bytes(contents)
        tracemalloc.start()
        assert said in refusal(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**22, f"{peak} bytes for a file of {len(contents)}"


def test_overlapping_members_of_a_zip_do_not_multiply_it(file):
    write(file, tensor((6,), (1,)), {"0": np.zeros(1000, np.uint8)})
    contents = file.read_bytes()
    start, end = contents.index(b"PK\x01\x02"), contents.index(b"PK\x05\x06")
    entries = contents[start:end] + contents[contents.rindex(b"PK\x01\x02") : end] * 300
    counts = struct.pack("<HHHHIIH", 0, 0, 303, 303, len(entries), start, 0)
    file.write_bytes(contents[:start] + entries + b"PK\x05\x06" + counts)
    assert "unpacks to" in refusal(file)


def test_pickles_cut_anywhere_are_refused(file):
    whole = program({"model": {"w": tensor((2, 3), (3, 1))}, "lr": [1e-4, (0.9, 0.999)]})
    for length in range(len(whole) + 1):
        refusal(write(file, Program(whole[:length]), stop=b""))


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in strings of protocol 0, as pickletools reads them
def test_mutated_pickles_are_data_or_refused(file):
    whole = program({"model": {"w": tensor((2, 3), (3, 1))}, "lr": [1e-4, (0.9, 0.999)], "step": 5})
    random, read_well = np.random.default_rng(2), 0
    for _ in range(200):
        mutant = np.frombuffer(whole, np.uint8).copy()
        mutant[random.integers(mutant.size)] = random.integers(256)
        try:
            json.dumps(read(write(file, Program(mutant.tobytes()))), default=np.ndarray.tolist)  # plain data alone
            read_well += 1
        except UserError as error:
            assert "\n" not in str(error)
    assert 0 < read_well < 200
