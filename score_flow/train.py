"""Training of one run: restore or begin, fit, save, and leave a workdir from which anything can go on."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from score_flow.build import Experiment
from score_flow.checkpoint import Checkpoints, target
from score_flow.config import differences
from score_flow.data.pipeline import Batches, check, gather, rounds
from score_flow.dequantization import Dequantisation
from score_flow.ema import n_averages
from score_flow.model import count_parameters
from score_flow.record import MetricLog, Recorder
from score_flow.sharding import batch_sharding, is_main, multiple, state_shardings
from score_flow.training import Loss, Metrics, Preemption, TrainState, crossed, fit, init_state, make_train_steps
from score_flow.types import Params, Preempted, UserError

# What must not change under a checkpoint; the rest (lengths, frequencies, learning rate) may.
FIXED = ("path", "network", "model", "data", "optim.optimizer", "training.batch_size", "training.time_sampler", "seed")

Snapshot = Callable[[int, Params], None]  # (step, EMA parameters): draws a sheet of samples


def train(
    run: Experiment, config: ConfigDict, workdir: Path, snapshot: Snapshot, fixed: tuple[str, ...] = FIXED
) -> None:
    """Train to config.training.n_iters, from the newest good checkpoint of the workdir if there is one.

    fixed: the sections of the config that must be those of that checkpoint.
    """
    options = config.training
    check(run.train_source, options.batch_size, run.mesh.size)
    saver = Saver(workdir, config, snapshot)
    init = functools.partial(_init, run, n_averages(config.model))
    shapes = jax.eval_shape(init)
    shardings = state_shardings(run.mesh, shapes)
    start = saver.newest(config, fixed)
    begin = jax.jit(init, out_shardings=shardings)
    state = begin() if start is None else saver.restore(start, begin, shapes, shardings)
    start = start or 0
    _introduce(run, shapes, workdir, start, options)
    steps = _steps(run, config.model, shardings)
    batches = Batches(run.train_source, options.batch_size, run.seed, batch_sharding(run.mesh, leading=1))
    log = MetricLog(workdir, start)
    recorder = saver.recorder = Recorder(log, options.log_freq, start, options.n_iters)
    hooks = [recorder, TestLoss(run, log, options.eval_freq), saver]
    try:
        with Preemption() as preemption:
            step, state = fit(state, steps, batches, start, options.n_iters, options.n_jitted_steps, hooks, preemption)
            saver.finish(step, state, milestone=step == options.n_iters)
    finally:
        recorder.close()
        log.close()
        batches.close()
        saver.close()
    if step < options.n_iters:
        raise Preempted(f"stopped and saved at step {step}; run the same command to go on.")


def holding_fixed(objective: Loss, make: Callable[[Loss], Callable], donate: int | None = None) -> Callable:
    """make(objective), a compiled function; weights that the loss holds are its arguments, none of its constants."""
    if not isinstance(objective, Dequantisation):
        return make(objective)
    donated = () if donate is None else donate + 1
    program = jax.jit(lambda objective, *arguments: make(objective)(*arguments), donate_argnums=donated)
    return functools.partial(program, objective)


def _init(run: Experiment, n_ema: int) -> TrainState:
    return init_state(run.init(jax.random.key(run.seed)), run.objective, run.optimiser, n_ema)


def _steps(run: Experiment, averages: ConfigDict, shardings: TrainState) -> Callable:
    def make(objective: Loss) -> Callable:
        return make_train_steps(
            objective,
            run.optimiser,
            averages.ema_rate,
            averages.ema_warmup,
            run.preprocess,
            run.seed,
            run.mesh,
            shardings,
            averages.ema_std,
        )

    return holding_fixed(run.objective, make, donate=0)


def _introduce(run: Experiment, shapes: TrainState, workdir: Path, start: int, options: ConfigDict) -> None:
    if not is_main():
        return
    parameters = count_parameters(shapes.params)
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device(s), {jax.process_count()} process(es)"
    print(
        f"{type(run.trained).__name__} with {parameters:,} parameters on {type(run.model.path).__name__}; "
        f"{len(run.train_source)} images {run.train_source.name} {run.image_shape}; "
        f"global batch {options.batch_size}; {devices}; "
        f"{'from step ' + str(start) if start else 'from the start'} to step {options.n_iters}",
        flush=True,
    )
    overview = parameter_overview.get_parameter_overview(shapes.params, include_stats=False)
    (workdir / "parameters.txt").write_text(overview + "\n")


class Saver:
    """The hook that saves: resumable states in checkpoints-meta/ (newest two), milestones in checkpoints/ (all)."""

    def __init__(self, workdir: Path, config: ConfigDict, snapshot: Snapshot):
        self.meta, self.milestones = (
            Checkpoints(workdir / "checkpoints-meta", keep=2),
            Checkpoints(workdir / "checkpoints"),
        )
        self.recorder: Recorder | None = None
        self._snapshot, self._options = snapshot, config.training
        self._saved = {"config": json.loads(config.to_json_best_effort()), "weights": {"raw": "raw", "ema": "ema"}}

    def __call__(self, previous: int, step: int, state: TrainState, metrics: Metrics) -> None:
        self.meta.poll()
        self.milestones.poll()
        if step == self._options.n_iters:
            return  # finish() saves
        if crossed(self._options.snapshot_freq, previous, step):
            self._save(self.milestones, step, state)
            self._draw(step, state)
        elif crossed(self._options.snapshot_freq_for_preemption, previous, step):
            self._save(self.meta, step, state)

    def finish(self, step: int, state: TrainState, milestone: bool) -> None:
        """Save the state that training ends with, and wait for it."""
        self._save(self.milestones if milestone else self.meta, step, state, wait=True)
        if milestone:
            self._draw(step, state)

    def newest(self, config: ConfigDict, fixed: tuple[str, ...] = FIXED) -> int | None:
        """The step to go on from; refuses a checkpoint of another config, naming both values."""
        found = [(c.newest_good(), c) for c in (self.meta, self.milestones)]
        found = [(step, c) for step, c in found if step is not None]
        if not found:
            return None
        step, checkpoints = max(found, key=lambda pair: pair[0])
        refuse_other_config(checkpoints.meta(step)["config"], config, fixed, checkpoints.directory)
        for c in (self.meta, self.milestones):
            c.delete_after(step)
        return step

    def restore(
        self, step: int, begin: Callable[[], TrainState], shapes: TrainState, shardings: TrainState
    ) -> TrainState:
        """The state at a step. Imported weights come without an optimiser: theirs is a fresh one."""
        checkpoints = self.meta if step in self.meta.steps() else self.milestones
        wanted = _items(target(shapes, shardings))
        if "imported" not in checkpoints.meta(step):
            return TrainState(**_from_items(checkpoints.restore(step, wanted)))
        weights = checkpoints.restore(step, {name: wanted[name] for name in ("params", "ema")})
        return begin().replace(step=jnp.asarray(step, jnp.int32), params=weights["params"], ema=tuple(weights["ema"]))

    def close(self) -> None:
        self.meta.close()
        self.milestones.close()

    def _save(self, checkpoints: Checkpoints, step: int, state: TrainState, wait: bool = False) -> None:
        self.recorder.flush()  # a state is saved only when every step up to it was finite
        checkpoints.save(step, _items(state), self._saved | {"step": step}, wait=wait)

    def _draw(self, step: int, state: TrainState) -> None:
        if self._options.snapshot_sampling:
            self._snapshot(step, state.ema[0])


def _items(state: TrainState) -> dict:
    """The state as separately restorable items."""
    rest = {"opt_state": state.opt_state, "time_state": state.time_state, "step": state.step}
    return {"params": state.params, "ema": list(state.ema), "train": rest}


def _from_items(items: dict) -> dict:
    return {"params": items["params"], "ema": tuple(items["ema"]), **items["train"]}


def refuse_other_config(saved: dict, config: ConfigDict, sections: tuple[str, ...], where: Path) -> None:
    """Raise UserError when a checkpoint was made with other values than the config's in the named sections."""
    changed = differences(saved, json.loads(config.to_json_best_effort()), sections)
    if changed:
        raise UserError(
            f"{where} was made with another config ({'; '.join(changed)}): change it back or use another --workdir."
        )


class TestLoss:
    """The hook that logs the EMA's loss on test images: the same images, times and noise every time."""

    __test__ = False  # not a pytest class
    MAX_ROUNDS = 8

    def __init__(self, run: Experiment, log: MetricLog, every: int):
        self._run, self._log, self._every = run, log, every
        # A batch of whole multiples of the devices, no larger than the test set needs.
        n = len(run.test_source)
        self._batch = multiple(run.mesh, min(n, 256))
        self._rounds = min(self.MAX_ROUNDS, -(-n // self._batch))

        def make(objective):
            @jax.jit
            def losses(params, key, batch, mask):
                x0, condition = run.preprocess(key, batch)
                aux = objective(params, objective.times.init(), key, x0, condition, train=False)[1]
                return jnp.sum(jnp.where(mask, aux.losses, 0.0)), jnp.sum(mask)

            return losses

        self._losses = holding_fixed(run.objective, make)

    def __call__(self, previous: int, step: int, state: TrainState, metrics: Metrics) -> None:
        if not crossed(self._every, previous, step):
            return
        total, count = 0.0, 0
        for i in range(self._rounds):
            indices, mask = rounds(len(self._run.test_source), self._batch, i)
            batch = gather(self._run.test_source, indices, batch_sharding(self._run.mesh))
            key = jax.random.fold_in(jax.random.key(self._run.seed), i)
            loss, n = self._losses(state.ema[0], key, batch, np.asarray(mask))
            total, count = total + float(loss), count + int(n)
        self._log.write(step, {"test_loss": total / count})
