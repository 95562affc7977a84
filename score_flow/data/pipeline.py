"""Which examples a step or an evaluation round sees, and how they reach the devices.

The batch of a step is a pure function of (seed, step) over *global* positions: it depends neither on how many processes
or devices there are nor on where a run was interrupted, and no iterator has to be saved. grain's seeded index shuffle
supplies the order.
"""

import functools
from concurrent.futures import Future, ThreadPoolExecutor

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Bool, Int

from score_flow.data.base import Source
from score_flow.errors import UserError
from score_flow.types import Batch

AHEAD, AHEAD_BYTES = 4, 1 << 29  # calls that are read ahead, and what they hold on all devices together


@functools.lru_cache(maxsize=16)
def _order(n: int, batch_size: int, seed: int) -> grain.MapDataset:
    # repeat before batch: batches run across the end of an epoch, so that every one is full
    return grain.MapDataset.range(n).seed(seed).shuffle().repeat().batch(batch_size)


def indices(n: int, batch_size: int, *, seed: int, step: int) -> Int[np.ndarray, "batch"]:
    """Choose the examples of a step: its part of an endless row of epochs, each a new permutation of 0 .. n - 1."""
    return _order(n, batch_size, seed)[step]


def rounds(n: int, batch_size: int, round: int) -> tuple[Int[np.ndarray, "batch"], Bool[np.ndarray, "batch"]]:
    """Choose the examples of an evaluation round, and which count: past the end the last is repeated, masked out."""
    positions = round * batch_size + np.arange(batch_size)
    return np.minimum(positions, n - 1), positions < n


def gather(source: Source, ids: Int[np.ndarray, "*dims"], sharding: NamedSharding) -> Batch:
    """Return the examples `ids`, as global arrays of shape ids.shape + example shape, sharded over the axes of ids.

    Every process passes the same ids and reads only the blocks of them that its own devices hold, each once.
    """

    def key(index: tuple[slice, ...]) -> tuple[tuple[int, int, int], ...]:
        return tuple(part.indices(size) for part, size in zip(index, ids.shape, strict=False))  # the axes of ids only

    local = {key(index): index for index in sharding.addressable_devices_indices_map(ids.shape).values()}
    mine = np.stack([ids[index] for index in local.values()])  # shards are all of one shape

    def place(rows: np.ndarray) -> jax.Array:
        blocks = dict(zip(local, rows.reshape(mine.shape + rows.shape[1:]), strict=True))
        return jax.make_array_from_callback(ids.shape + rows.shape[1:], sharding, lambda index: blocks[key(index)])

    return {name: place(rows) for name, rows in source.read(mine.ravel()).items()}


def check(source: Source, batch_size: int, n_devices: int) -> None:
    """Raises UserError unless there is data and the global batch divides evenly among the devices."""
    if len(source) == 0:
        raise UserError(f"data: {source.name} is empty; allowed: at least one example")
    check_divides(batch_size, n_devices)


def check_divides(batch_size: int, n_devices: int) -> None:
    """Raises UserError unless a global batch divides evenly among the devices."""
    if batch_size < 1 or batch_size % n_devices:
        below = max(batch_size // n_devices, 0) * n_devices
        nearest = " or ".join(str(size) for size in (below, below + n_devices) if size)
        raise UserError(f"batch size {batch_size} does not divide among {n_devices} devices; nearest: {nearest}")


class Batches:
    """Training batches: `batches(step, n_steps)` = {"image": (n_steps, batch, h, w, c), "label": (n_steps, batch)}.

    Images are uint8 and labels int32, laid out by `sharding` over (n_steps, batch). While the devices work, one thread
    reads ahead for the calls that follow, (step + n_steps, n_steps) and so on: AHEAD of them, or as many as AHEAD_BYTES
    hold. A call raises the errors of its own read; one that was not expected is answered just as well, only later.
    Raises UserError as `check` does.
    """

    def __init__(self, source: Source, batch_size: int, *, seed: int, sharding: NamedSharding):
        n_devices = sharding.mesh.size // sharding.shard_shape((1, sharding.mesh.size))[1]
        check(source, batch_size, n_devices)
        if seed < 0:
            raise UserError(f"seed: got {seed}; allowed: 0 or more")
        self._source, self._batch_size, self._seed, self._sharding = source, batch_size, seed, sharding
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: dict[tuple[int, int], Future[Batch]] = {}  # by (step, n_steps)

    def __call__(self, step: int, n_steps: int) -> Batch:
        batch = (self._ahead.pop((step, n_steps), None) or self._start(step, n_steps)).result()
        deep = min(AHEAD, AHEAD_BYTES // sum(array.nbytes for array in batch.values()))
        expected = [(step + i * n_steps, n_steps) for i in range(1, max(deep, 1) + 1)]
        for call in self._ahead.keys() - set(expected):
            self._ahead.pop(call).cancel()
        self._ahead = {call: self._ahead.get(call) or self._start(*call) for call in expected}
        return batch

    def close(self) -> None:
        """Stop reading ahead, after the read in progress."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _start(self, step: int, n_steps: int) -> "Future[Batch]":
        return self._thread.submit(self._read, step, n_steps)

    def _read(self, step: int, n_steps: int) -> Batch:
        ids = np.stack(
            [indices(len(self._source), self._batch_size, seed=self._seed, step=step + i) for i in range(n_steps)]
        )
        return gather(self._source, ids, self._sharding)
