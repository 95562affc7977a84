"""The batch of a step depends on (seed, step) alone: not on devices, processes, interruptions or earlier calls."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from score_flow.data import pipeline
from score_flow.data.base import ArraySource
from score_flow.data.pipeline import Batches, check, gather, indices, rounds
from score_flow.errors import UserError

SIZES = [(10, 4), (7, 3), (8, 8), (3, 8), (1, 2), (101, 16)]


def sharding(n_devices, spec=(None, "data")):
    mesh = jax.make_mesh((n_devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:n_devices])
    return NamedSharding(mesh, PartitionSpec(*spec))


def numbered(n=37):
    """Image i is filled with i and has label i."""
    image = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None], (n, 2, 3, 1)).copy()
    return ArraySource("numbered", image, np.arange(n, dtype=np.int32), 256, n)


class Spy:
    """Remembers what was read and can be told to fail."""

    name, image_shape, levels, num_classes = "spy", (2, 3, 1), 256, 37

    def __init__(self):
        self.reads, self.broken = [], False

    def __len__(self):
        return 37

    def read(self, ids):
        if self.broken:
            raise UserError("file 3 is broken")
        self.reads.append(ids.tolist())
        return numbered().read(ids)


@pytest.mark.parametrize(("n", "batch_size"), SIZES)
def test_each_epoch_is_a_fresh_permutation(n, batch_size):
    n_epochs = 2 * batch_size  # whole batches and whole epochs
    row = np.concatenate([indices(n, batch_size, seed=5, step=step) for step in range(2 * n)])
    epochs = row.reshape(n_epochs, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (n_epochs, 1)))
    if n > 6:  # 1 in n! to repeat by chance
        assert len({tuple(epoch) for epoch in epochs}) == n_epochs


def test_batch_is_a_function_of_seed_and_step():
    steps = [0, 5, 1000003, 5, 1]
    first = [indices(50, 8, seed=3, step=step) for step in steps]
    pipeline._order.cache_clear()  # as after a restart
    for step, batch in zip(reversed(steps), reversed(first), strict=True):
        np.testing.assert_array_equal(indices(50, 8, seed=3, step=step), batch)
    assert not np.array_equal(indices(50, 8, seed=4, step=0), first[0])


def test_order_does_not_depend_on_the_batch_size():
    """So a run may change its batch size at a step and still use every example once an epoch."""
    whole = [
        np.concatenate([indices(30, size, seed=0, step=step) for step in range(60 // size)]) for size in (1, 4, 30)
    ]
    np.testing.assert_array_equal(whole[0], whole[1])
    np.testing.assert_array_equal(whole[0], whole[2])


@pytest.mark.parametrize(("n", "batch_size"), SIZES)
def test_rounds_count_every_example_once(n, batch_size):
    n_rounds = -(-n // batch_size) + 1  # and one too many, as for a process that must keep step
    ids, mask = map(np.concatenate, zip(*(rounds(n, batch_size, i) for i in range(n_rounds)), strict=True))
    np.testing.assert_array_equal(ids[mask], np.arange(n))
    assert ids.shape == mask.shape == (n_rounds * batch_size,)
    assert ids.max() < n


@pytest.mark.parametrize("n_steps", [1, 3])
def test_global_batch_is_the_same_on_one_and_on_all_devices(n_steps):
    n_devices = len(jax.devices())
    source = numbered()
    one = Batches(source, 2 * n_devices, seed=0, sharding=sharding(1))(4, n_steps)
    every = Batches(source, 2 * n_devices, seed=0, sharding=sharding(n_devices))(4, n_steps)
    ids = np.stack([indices(37, 2 * n_devices, seed=0, step=4 + i) for i in range(n_steps)])
    for batch in (one, every):
        np.testing.assert_array_equal(batch["label"], ids)
        np.testing.assert_array_equal(batch["image"], source.image[ids])
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)
    assert every["image"].sharding.is_equivalent_to(sharding(n_devices), 5)
    assert {shard.data.shape for shard in every["image"].addressable_shards} == {(n_steps, 2, 2, 3, 1)}


def test_gather_follows_any_sharding_and_reads_each_block_once():
    n_devices = len(jax.devices())
    ids = np.arange(n_devices)
    for spec in (("data",), (None,)):
        source = Spy()
        label = gather(source, ids, sharding(n_devices, spec))["label"]
        np.testing.assert_array_equal(label, ids)
        assert sorted(i for read in source.reads for i in read) == ids.tolist()  # replicas are read once


def test_batches_read_ahead_and_answer_out_of_turn():
    source = Spy()
    batches = Batches(source, 4, seed=1, sharding=sharding(1))
    for step, n_steps in [(0, 2), (2, 2), (4, 2), (1, 1), (2, 3), (100, 1), (100, 1)]:
        expected = np.stack([indices(37, 4, seed=1, step=step + i) for i in range(n_steps)])
        np.testing.assert_array_equal(batches(step, n_steps)["label"], expected)
    batches.close()
    ahead = np.stack([indices(37, 4, seed=1, step=2 + i) for i in range(2)]).ravel()
    assert source.reads[1] == ahead.tolist()  # the second read was for the second call
    assert source.reads.count(ahead.tolist()) == 1  # which did not read again


def test_batches_raise_an_error_at_the_call_that_needs_the_batch():
    source = Spy()
    batches = Batches(source, 4, seed=1, sharding=sharding(1))
    batches(0, 1)
    batches._ahead[pipeline.AHEAD, 1].result()  # read before the break
    source.broken = True
    for step in range(pipeline.AHEAD):
        batches(1 + step, 1)
    with pytest.raises(UserError, match="file 3 is broken"):
        batches(1 + pipeline.AHEAD, 1)
    source.broken = False
    assert batches(1 + pipeline.AHEAD, 1)["image"].shape == (1, 4, 2, 3, 1)
    batches.close()


def test_several_calls_are_read_ahead_as_far_as_memory_goes(monkeypatch):
    for most, deep in ((1 << 20, pipeline.AHEAD), (2 * 4 * 6 * 1 + 2 * 4 * 4, 1), (1, 1)):
        monkeypatch.setattr(pipeline, "AHEAD_BYTES", most)  # a call is 2 x 4 images of 2 x 3 x 1 bytes, and labels
        source = Spy()
        batches = Batches(source, 4, seed=1, sharding=sharding(1))
        batches(0, 2)
        assert list(batches._ahead) == [(2 * i, 2) for i in range(1, deep + 1)]
        [future.result() for future in batches._ahead.values()]
        batches(2, 2)
        batches.close()
        assert len({tuple(read) for read in source.reads}) == len(source.reads) <= deep + 2


def test_check_names_the_nearest_batch_sizes():
    with pytest.raises(UserError, match="^batch size 30 does not divide among 8 devices; nearest: 24 or 32$"):
        check(numbered(), 30, 8)
    with pytest.raises(UserError, match="nearest: 8$"):
        check(numbered(), 5, 8)
    with pytest.raises(UserError, match="nearest: 8$"):
        check(numbered(), -8, 8)
    with pytest.raises(UserError, match="numbered is empty"):
        check(numbered(0), 8, 8)
    with pytest.raises(UserError, match="does not divide"):
        Batches(numbered(), len(jax.devices()) + 1, seed=0, sharding=sharding(len(jax.devices())))
    with pytest.raises(UserError, match="seed: got -1"):
        Batches(numbered(), 8, seed=-1, sharding=sharding(1))


PROCESS = """
import sys
import jax
import numpy as np
rank, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, rank)
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from score_flow.data.base import ArraySource
from score_flow.data.pipeline import Batches, indices

reads = []
class Spy(ArraySource):
    def read(self, ids):
        reads.append(ids.tolist())
        return super().read(ids)

mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
image = np.arange(40, dtype=np.uint8).reshape(40, 1, 1, 1)
batches = Batches(Spy("spy", image), 8, seed=0, sharding=NamedSharding(mesh, PartitionSpec(None, "data")))
batch = batches(3, 2)["image"]
batches.close()
ids = np.stack([indices(40, 8, seed=0, step=3), indices(40, 8, seed=0, step=4)])
mine = ids[:, 4 * rank : 4 * rank + 4]
assert sorted(reads[0]) == sorted(mine.ravel().tolist()), (reads, mine)
assert batch.shape == (2, 8, 1, 1, 1)
for shard in batch.addressable_shards:
    np.testing.assert_array_equal(shard.data[..., 0, 0, 0], ids[shard.index[:2]])
print("same batch")
"""


def test_each_of_two_processes_reads_its_own_rows():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(root),
    }
    command = [sys.executable, "-c", PROCESS]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(port)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in (0, 1)
    ]
    for process in processes:
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error.decode()[-2000:]
        assert out.decode().strip() == "same batch"
