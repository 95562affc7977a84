"""One attempt of training: from a state to the end, to a signal, or to a step from which the run goes back."""

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np

from score_flow.config.options import Config
from score_flow.data.pipeline import Batches
from score_flow.errors import NonFinite
from score_flow.experiment import Experiment
from score_flow.runs.places import Place
from score_flow.runs.progress import MetricLog
from score_flow.runs.sharding import batch_sharding
from score_flow.training.faults import Faults
from score_flow.training.held_out import TestLoss
from score_flow.training.optimiser import rate_of
from score_flow.training.recorder import Recorder
from score_flow.training.saver import Saver
from score_flow.training.steps import TrainState, fit, reseeded
from score_flow.training.telling import Told


@dataclasses.dataclass
class Loop:
    """What the attempts of a run share.

    steps: the compiled program; ahead: steps before the optimiser's first update; least_seconds: of a step, at the
    devices' peak; why: the step that was not finite, of an attempt after which the run goes back.
    """

    run: Experiment
    config: Config
    workdir: Place
    saver: Saver
    faults: Faults
    told: Told
    steps: Callable
    ahead: int
    least_seconds: float | None
    why: str = ""

    def attempt(self, start: int, state: TrainState) -> int | None:
        """Train from a state and save what it leads to; return the step reached, or None where the run is to go back.

        Raises NonFinite where config.training.non_finite says so.
        """
        try:
            with contextlib.ExitStack() as closing:
                return self._attempt(start, state, closing)
        except NonFinite as error:
            if self.faults.policy != "rollback":
                raise
            self.why = str(error)  # and no more: the error holds the state of the attempt, a second would not fit
        return None

    def _attempt(self, start: int, state: TrainState, closing: contextlib.ExitStack) -> int:
        options, saver, seed = self.config.training, self.saver, self.faults.seed_of(self.run.seed)
        sharding = batch_sharding(self.run.mesh, leading=1)
        batches = Batches(self.run.examples, options.batch_size, seed=seed, sharding=sharding)
        closing.callback(batches.close)
        log = MetricLog(self.workdir, start, self.told.row)
        closing.callback(log.close)
        rate = rate_of(self.config.optim, options.n_iters - self.ahead)
        saver.recorder = recorder = Recorder(
            log, options.log_freq, start=start, n_steps=options.n_iters, rate=lambda n: rate(n - self.ahead, np),
            faults=self.faults, batch_size=options.batch_size, least_seconds=self.least_seconds,
        )  # fmt: skip
        closing.callback(recorder.close)
        test = [TestLoss(self.run, log, options.eval_freq, recorder.settle)] if options.eval_freq else []
        step, state = fit(
            state, reseeded(self.steps, seed) if self.faults.policy == "rollback" else self.steps, batches,
            start=start, n_steps=options.n_iters, n_jitted_steps=options.n_jitted_steps,
            hooks=[recorder, *test, saver, recorder.go_on], stop=lambda: saver.asked.ask()["stop"],
        )  # fmt: skip
        saver.finish(step, state, milestone=step == options.n_iters)
        return step
