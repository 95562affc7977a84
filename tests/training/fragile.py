"""A run of one number, trained in no time, whose steps are not finite when one likes; signals in this very process."""

import dataclasses
import os
import signal
from typing import ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data.pipeline import Batches
from score_flow.losses.base import Aux
from score_flow.process.times import TimeSampler
from score_flow.training.run import train
from score_flow.tree import static
from tests.launch import TINY

FLAGS = (
    "training.n_iters=30", "training.eval_freq=0", "training.log_freq=1", "optim.schedule=cosine", "optim.warmup=2",
    "optim.lr=0.1",
)  # fmt: skip


@flax.struct.dataclass
class Fragile:
    """A number that follows images and noise; not finite at the steps of some keys, or once it is too large."""

    bad: Array  # (n, 2): keys
    limit: Array
    times: TimeSampler = static()
    network: object = static()
    produces: ClassVar[str] = "denoiser"

    def init(self, key, batch):
        return {"scale": jnp.zeros(())}

    def __call__(self, params, time_state, key, batch, *, train=True):
        means = batch["image"].astype(jnp.float32).mean(axis=(1, 2, 3)) / 255
        each = (means + jax.random.normal(key, means.shape) + 3 - params["scale"]) ** 2
        hit = jnp.any(jnp.all(jax.random.key_data(key) == self.bad, axis=1)) | (params["scale"] > self.limit)
        each = jnp.where(hit, jnp.nan, 1.0) * each
        return each.mean(), Aux(each, jnp.zeros(len(means)), time_state + 1)


def key_of(step, seed=0):
    """The key of a step, counted from 1."""
    return np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.key(seed), step - 1)))


def fragile():
    """The objects of the run."""
    built = experiment(load("configs/digits.py", TINY[1:]))
    draw = lambda state, key, b: (jnp.zeros(b), jnp.ones(b))  # noqa: E731
    times = TimeSampler(lambda: jnp.zeros(()), draw, lambda state, t, losses: state)
    keys = np.zeros((1, 2), np.uint32)
    return dataclasses.replace(built, loss=Fragile(keys, np.float32(np.inf), times, built.loss.network))


def fit(run, workdir, *flags, bad=(), limit=np.inf, moment=None, snapshot=lambda step, params: None):
    """Train with steps that are not finite; moment: (step, "SIGTERM" or "SIGKILL"), at which something happens."""
    config = load("configs/digits.py", [*TINY[1:], *(f"--config.{flag}" for flag in (*FLAGS, *flags))])
    keys = np.stack([np.zeros(2, np.uint32), *map(np.asarray, bad)])
    run = dataclasses.replace(run, loss=run.loss.replace(bad=keys, limit=np.float32(limit)))
    with pytest.MonkeyPatch.context() as patch:
        call = Batches.__call__

        def batches(self, step, k):
            if moment and step + k == moment[0]:
                if moment[1] == "SIGKILL":
                    raise LookupError("killed")
                os.kill(os.getpid(), signal.SIGTERM)
            return call(self, step, k)

        patch.setattr(Batches, "__call__", batches)
        train(run, config, workdir, snapshot)
