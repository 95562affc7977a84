"""torch's files from before 1.6: pickles, then storages, read to the very numbers; others are refused in one line."""

import numpy as np
import pytest

from score_flow.errors import UserError
from score_flow.pretrained.readers import torch_legacy
from tests.pretrained.torch_writer import SIX, Program, call, name, program, tensor


def storage(key="0", numel=6, kind="torch.FloatStorage", view=None) -> Program:
    return Program(program(("storage", name(kind), key, "cpu", numel, view)) + b"Q")


def legacy_tensor(size, stride, offset=0, **of) -> Program:
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", storage(**of), offset, size, stride, False, hooks)


def dumped(value) -> bytes:
    return b"\x80\x02" + program(value) + b"."


def write(file, value, storages=None, keys=None, version=1001, machine=None, magic=torch_legacy.MAGIC):
    storages = {"0": SIX} if storages is None else storages
    machine = {"protocol_version": 1001, "little_endian": True} if machine is None else machine
    pickles = (version, machine, value, list(storages) if keys is None else keys)
    contents = magic + b"".join(map(dumped, pickles))
    for content in storages.values():
        contents += len(content).to_bytes(8, "little") + content.tobytes()
    file.write_bytes(contents)
    return file


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.pth"


def refusal(file) -> str:
    with pytest.raises(UserError) as error:
        torch_legacy.read(file)
    return str(error.value)


def test_tensors_view_their_storages(file):
    values = {
        "whole": legacy_tensor((2, 3), (3, 1)),
        "transposed": legacy_tensor((3, 2), (1, 3)),
        "last": legacy_tensor((2,), (1,), offset=4),
        "scalar": legacy_tensor((), (), key="1", numel=1, kind="torch.LongStorage"),
        "empty": legacy_tensor((0, 3), (3, 1)),
        "nested": [{"half": legacy_tensor((2,), (1,), key="2", numel=2, kind="torch.BFloat16Storage")}],
    }
    bfloat16 = np.array([1.0, -2.5], np.float32).view(np.uint32) >> 16
    storages = {"0": SIX, "1": np.array([7]), "2": bfloat16.astype(np.uint16)}
    found = torch_legacy.read(write(file, values, storages))
    assert np.array_equal(found["whole"], SIX.reshape(2, 3)) and np.array_equal(found["last"], SIX[4:])
    assert np.array_equal(found["transposed"], SIX.reshape(2, 3).T)
    assert (found["scalar"].shape, found["scalar"].dtype, int(found["scalar"])) == ((), np.int64, 7)
    assert found["empty"].shape == (0, 3)
    assert found["nested"][0]["half"].tolist() == [1.0, -2.5]


def test_storages_come_in_the_order_of_their_keys(file):
    values = {"a": legacy_tensor((2,), (1,), key="a", numel=2), "b": legacy_tensor((3,), (1,), key="b", numel=3)}
    found = torch_legacy.read(write(file, values, {"b": SIX[:3], "a": SIX[4:]}))
    assert (found["a"].tolist(), found["b"].tolist()) == (SIX[4:].tolist(), SIX[:3].tolist())


@pytest.mark.parametrize("name_of_code", ["os.system", "builtins.eval", "torch.nn.modules.conv.Conv2d", "numpy.load"])
def test_code_is_refused_by_name(file, name_of_code):
    assert f"holds {name_of_code!r}, which is code, not weights" in refusal(write(file, {"a": call(name_of_code, "x")}))


@pytest.mark.parametrize("options, said", [
    ({"version": 1000}, "is of version 1000; allowed: 1001"),
    ({"machine": {"little_endian": False}}, "allowed: 1001, little-endian"),
    ({"machine": [1]}, "allowed: 1001, little-endian"),
    ({"keys": []}, "names other storages"),
    ({"keys": ["0", "0"]}, "names other storages"),
    ({"keys": ["0", "1"]}, "names other storages"),
    ({"keys": [0]}, "names other storages"),
    ({"storages": {"0": SIX[:5]}}, "'0' has not 6 elements"),
    ({"storages": {"0": SIX.astype(np.float64)[:3]}}, "'0' has not 6 elements"),
    ({"magic": b"\x80\x02K\x01."}, "is no file of torch"),
])  # fmt: skip
def test_what_torch_does_not_write_is_refused(file, options, said):
    assert said in refusal(write(file, {"a": legacy_tensor((6,), (1,))}, **options))


@pytest.mark.parametrize("value, said", [
    (legacy_tensor((6,), (1,), numel=10**12), "more than it has"),
    (legacy_tensor((6,), (1,), view=("v", 0, 6)), "no storage of a tensor"),
    (tensor((6,), (1,)), "no storage of a tensor"),  # as since torch 1.6
    (legacy_tensor((7,), (1,)), "outside its storage"),
    (legacy_tensor((10**6, 10**6), (0, 0)), "allowed: "),  # one element, seen 10^12 times
    ([legacy_tensor((6,), (1,)), legacy_tensor((3,), (1,), numel=3)], "in two ways"),
])  # fmt: skip
def test_hostile_contents_are_refused(file, value, said):
    assert said in refusal(write(file, value))


def test_a_truncated_file_is_refused_wherever_it_ends(file):
    whole = write(file, {"a": legacy_tensor((6,), (1,))}).read_bytes()
    for end in range(len(torch_legacy.MAGIC), len(whole), 7):
        file.write_bytes(whole[:end])
        with pytest.raises(Exception):  # noqa: B017 - its caller makes one line of whatever it is
            torch_legacy.read(file)
