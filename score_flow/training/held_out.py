"""The loss on held-out images, while a run trains."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from score_flow.data.pipeline import gather, rounds
from score_flow.experiment import Experiment
from score_flow.losses.base import Loss
from score_flow.runs.progress import MetricLog
from score_flow.runs.sharding import batch_sharding, multiple, whole
from score_flow.training.flat import tree_of
from score_flow.training.steps import Metrics, TrainState, crossed
from score_flow.types import Batch, Key, Params


class TestLoss:
    """The hook that logs the EMA's loss on test images: the same images, times and noise every time."""

    __test__ = False  # not a pytest class
    MAX_ROUNDS = 8

    def __init__(self, run: Experiment, log: MetricLog, every: int, settle: Callable[[], None]):
        """settle: called before, as the time that it takes is none of training's."""
        self._run, self._log, self._every, self._settle = run, log, every, settle
        # A batch of whole multiples of the devices, no larger than the test set needs.
        n = len(run.test_source)
        self._batch = multiple(run.mesh, min(n, 256))
        self._rounds = min(self.MAX_ROUNDS, -(-n // self._batch))
        self._losses = functools.partial(_sum_of_losses, run.loss)

    def __call__(self, previous: int, step: int, state: TrainState, metrics: Metrics) -> None:
        if not crossed(self._every, previous, step):
            return
        self._settle()
        total, count, params = 0.0, 0, whole(self._run.mesh, tree_of(state.ema[0]))
        for i in range(self._rounds):
            ids, mask = rounds(len(self._run.test_source), self._batch, i)
            batch = gather(self._run.test_source, ids, batch_sharding(self._run.mesh))
            key = jax.random.fold_in(jax.random.key(self._run.seed), i)
            loss, n = self._losses(params, key, batch, np.asarray(mask))
            total, count = total + float(loss), count + int(n)
        self._log.write(step, {"test_loss": total / count})


@jax.jit
def _sum_of_losses(
    loss: Loss, params: Params, key: Key, batch: Batch, mask: Bool[Array, "b"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """(the sum, the number) of the losses of a batch that count."""
    losses = loss(params, loss.times.init(), key, batch, train=False)[1].losses
    return jnp.sum(jnp.where(mask, losses, 0.0)), jnp.sum(mask)
