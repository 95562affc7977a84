"""Two processes hash and restore a state together: each reads its share of the bytes, and gets what was saved."""

import json
import subprocess
import sys

import pytest

from tests.launch import ROOT, environment, places

# Saves a state, or looks for damage and restores, and prints how many bytes the process read for each.
WORK = """
import json, sys

import jax, numpy as np

from score_flow.runs import processes
from score_flow.runs.checkpoint import Checkpoints, target
from score_flow.runs.sharding import make_mesh, state_shardings

folder, saved, wanted, size = sys.argv[1:4] + [int(sys.argv[4])]
processes.initialise()
shapes = {f"w{i}": jax.ShapeDtypeStruct((1024, size // 1024 // 4 // 8), np.float32) for i in range(8)}


def bits(name, index):
    "Random bits, signs of zeros and NaNs among them, which are those of a column wherever that lies."
    rows, columns = (range(n)[part] for n, part in zip(shapes[name].shape, index))
    drawn = [np.random.default_rng([int(name[1]), c]).integers(2**32, size=1024, dtype=np.uint32) for c in columns]
    return np.stack(drawn, 1)[rows.start : rows.stop].view(np.float32)


def counted(do):
    "(the bytes that this process read meanwhile, what came of it)"
    read = lambda: int(open("/proc/self/io").read().split()[1])
    before = read()
    done = jax.block_until_ready(do())
    return read() - before, done


def layouts(kind):
    return state_shardings(make_mesh(kind == "fsdp"), shapes)


checkpoints, done = Checkpoints(folder), {}
if saved != "none":
    at = layouts(saved)
    state = {
        name: jax.make_array_from_callback(shape.shape, at[name], lambda index, name=name: bits(name, index))
        for name, shape in shapes.items()
    }
    done["save"], _ = counted(lambda: checkpoints.save(1, {"params": state}, {}, wait=True))
    del state
if wanted != "none":
    done["hash"], damage = counted(lambda: checkpoints.damage(1))
    assert damage is None
    done["restore"], restored = counted(lambda: checkpoints.restore(1, {"params": target(shapes, layouts(wanted))}))
    for name, array in restored["params"].items():
        assert array.sharding == layouts(wanted)[name]
        for shard in array.addressable_shards[:: 1 if wanted == "fsdp" else 4]:
            assert np.asarray(shard.data).tobytes() == bits(name, shard.index).tobytes(), name
checkpoints.close()
print(json.dumps(done))
"""


def together(*arguments, n=2, devices=4):
    """What each of n processes read: {save, hash, restore: bytes}."""
    command = [sys.executable, "-c", WORK, *map(str, arguments)]
    started = [
        subprocess.Popen(command, cwd=ROOT, env=environment(devices, **place), stdout=subprocess.PIPE, text=True)
        for place in places(n)
    ]
    printed = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * n
    return [json.loads(text.splitlines()[-1]) for text in printed]


@pytest.mark.slow
@pytest.mark.parametrize(
    "saved, wanted, megabytes",
    [("fsdp", "fsdp", 1024), ("data", "data", 64), ("data", "fsdp", 64), ("fsdp", "data", 64)],
)
def test_each_of_two_processes_reads_its_share(tmp_path, saved, wanted, megabytes):
    size = megabytes << 20
    reads = together(tmp_path / "state", saved, "none", size), together(tmp_path / "state", "none", wanted, size)
    print(reads)
    for read in reads:
        for what in read[0]:
            shares = [each[what] / size for each in read]
            assert sum(shares) >= 0.98 and max(shares) <= 0.6, (what, shares)


@pytest.mark.slow
def test_a_state_that_one_process_saved_is_hashed_by_two(tmp_path):
    size = 64 << 20
    together(tmp_path / "state", "data", "none", size, n=1, devices=1)
    reads = together(tmp_path / "state", "none", "fsdp", size)
    assert 0.98 <= sum(each["hash"] / size for each in reads) <= 1.1
    assert max(each["restore"] for each in reads) <= 1.1 * size  # written in one part, which is read once by each
