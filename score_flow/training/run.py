"""Training of one run: restore or begin, fit, save, and leave a workdir from which anything can go on."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from jaxtyping import Array, Bool, Float, Int

from score_flow.config.options import Config, ModelOptions, TrainOptions
from score_flow.data.base import Source
from score_flow.data.compare import describe_classes, refuse_untrained_classes, refuse_untrained_start
from score_flow.data.pipeline import Batches, check, gather, indices, rounds
from score_flow.experiment import Experiment
from score_flow.losses.base import Loss
from score_flow.model import count_parameters
from score_flow.runs import memory
from score_flow.runs.checkpoint import target
from score_flow.runs.files import write_whole
from score_flow.runs.places import Place
from score_flow.runs.preemption import Preemption
from score_flow.runs.processes import Ahead, is_main
from score_flow.runs.progress import MetricLog
from score_flow.runs.sharding import batch_sharding, group_size, multiple, replicated, state_shardings, whole
from score_flow.runs.workdir import write_config
from score_flow.training.accepting import FIXED, settled
from score_flow.training.ema import n_averages
from score_flow.training.optimiser import optimiser_of, rate_of, updates_of
from score_flow.training.recorder import Recorder
from score_flow.training.saver import Saver, Snapshot, remembered
from score_flow.training.starting import Beginning, started
from score_flow.training.steps import Metrics, TrainState, crossed, fit, init_state, make_train_steps
from score_flow.types import Batch, Key, Params, Preempted


def train(
    run: Experiment, config: Config, workdir: Place, snapshot: Snapshot, fixed: tuple[str, ...] = FIXED,
    beginning: Beginning | None = None,
) -> None:  # fmt: skip
    """Train to config.training.n_iters, from the newest good checkpoint of the workdir if there is one.

    fixed: the sections of the config that must be those of that checkpoint, unless config.training.accept names them.
    beginning: the weights that a run begins with which has none.
    """
    options = config.training
    group_size(options.fsdp, run.mesh.size)
    rate_of(config.optim, options.n_iters)  # of a dequantiser they are fewer than run.optimiser was made for
    check_data(run, options, begins=remembered(workdir) is None)
    sheet = lambda step, params: snapshot(step, whole(run.mesh, params))  # noqa: E731
    saver = Saver(workdir, config, sheet, facts=run.data_facts)
    source = run.train_source
    first = indices(len(source), options.batch_size, seed=run.seed, step=0)
    init = functools.partial(initial_state, run, n_averages(config.model))
    shapes = jax.eval_shape(init, run.loss, source.read(first[:1]))  # of any number of examples
    shardings = state_shardings(run.mesh, shapes)
    begin = jax.jit(init, in_shardings=(None, replicated(run.mesh)), out_shardings=shardings)
    fresh = lambda: begin(run.loss, source.read(first))  # noqa: E731
    warm = started(beginning, run, n_averages(config.model), fresh, target(shapes, shardings))
    start, state = saver.resume(config, fresh, shapes, shardings, fixed, warm)
    ahead = start - updates_of(state.opt_state)  # steps of those who trained imported weights
    rate = rate_of(config.optim, options.n_iters - ahead)
    run = dataclasses.replace(run, optimiser=optimiser_of(config.optim, options.n_iters - ahead))
    write_config(workdir, settled(config))
    _introduce(run, shapes, workdir, start, options)
    steps = program_of(run, config.model, shardings)
    batches = Batches(source, options.batch_size, seed=run.seed, sharding=batch_sharding(run.mesh, leading=1))
    log = MetricLog(workdir, start)
    rate_at = lambda step: rate(step - ahead, np)  # noqa: E731
    recorder = Recorder(log, options.log_freq, start=start, n_steps=options.n_iters, rate=rate_at)
    saver.recorder = recorder
    hooks = [recorder, *([TestLoss(run, log, options.eval_freq)] if options.eval_freq else []), saver]
    with contextlib.ExitStack() as closing, Preemption() as preemption:
        for each in (saver, batches, log, recorder):
            closing.callback(each.close)
        needed = functools.partial(_needed, steps, shapes, run.train_source, options)
        closing.enter_context(memory.explained(options.batch_size, needed))
        asked = saver.asked = Ahead(stop=lambda: preemption.signalled, save=saver.due)
        step, state = fit(
            state, steps, batches,
            start=start, n_steps=options.n_iters, n_jitted_steps=options.n_jitted_steps,
            hooks=hooks, stop=lambda: asked.ask()["stop"],
        )  # fmt: skip
        saver.finish(step, state, milestone=step == options.n_iters)
    if step < options.n_iters:
        raise Preempted(f"stopped and saved at step {step}; run the same command to go on.")


def program_of(run: Experiment, averages: ModelOptions, shardings: TrainState) -> Callable:
    """Return the compiled steps of a run, called with a state and a batch (k, b, ...)."""
    return make_train_steps(
        run.loss, run.optimiser, seed=run.seed, mesh=run.mesh, shardings=shardings,
        ema_rates=averages.ema_rate, ema_warmup=averages.ema_warmup, ema_stds=averages.ema_std,
    )  # fmt: skip


def initial_state(run: Experiment, n_ema: int, loss: Loss, first: Batch) -> TrainState:
    """Make the state that training begins in; of the first batch most losses look at the shapes only."""
    return init_state(loss.init(jax.random.key(run.seed), first), loss, run.optimiser, n_ema=n_ema)


def _needed(steps: Callable, state: TrainState, source: Source, options: TrainOptions) -> int:
    """Return the bytes that a program of steps takes on each device."""
    leading = options.n_jitted_steps, options.batch_size
    one = source.read(np.arange(1))
    batch = {name: jax.ShapeDtypeStruct((*leading, *x.shape[1:]), x.dtype) for name, x in one.items()}
    return memory.needed_by(steps, state, batch)


def _introduce(run: Experiment, shapes: TrainState, workdir: Place, start: int, options: TrainOptions) -> None:
    if not is_main():
        return
    parameters = count_parameters(shapes.params)
    devices = f"{jax.device_count()} {jax.devices()[0].platform} device(s), {jax.process_count()} process(es)"
    for line in about_data(run, options.eval_freq > 0):
        print(f"data: {line}", flush=True)
    print(
        f"{type(run.loss.network).__name__} with {parameters:,} parameters on {type(run.model.path).__name__}; "
        f"{len(run.train_source)} images {run.train_source.name} {run.image_shape}; "
        f"global batch {options.batch_size}; {devices}; "
        f"{'from step ' + str(start) if start else 'from the start'} to step {options.n_iters}",
        flush=True,
    )
    overview = parameter_overview.get_parameter_overview(shapes.params, include_stats=False)
    write_whole(workdir / "parameters.txt", overview + "\n")


def check_data(run: Experiment, options: TrainOptions, begins: bool) -> None:
    """Raises UserError for data that a run cannot be trained on, or one that begins should not be.

    The test split is opened, and so compared with what the run is of, only where training looks at it.
    """
    check(run.train_source, options.batch_size, run.mesh.size)
    labelled = begins and run.conditioning.num_classes > 0
    if labelled:
        refuse_untrained_start(run.train_source)
    if options.eval_freq:
        test = run.test_source
        if labelled:
            refuse_untrained_classes(run.train_source, test)


def about_data(run: Experiment, tested: bool) -> list[str]:
    """Return what a person should know of the data before hours are spent: classes, what is held out or left out."""
    train, used = run.train_source, run.conditioning.num_classes > 0
    labelled = train.num_classes or getattr(train, "unlabelled", "")
    lines = [f"classes{'' if used else ', which this run does not use'}: {describe_classes(train)}"] if labelled else []
    lines += getattr(train, "notes", ())
    return lines + ([f"test split: {len(run.test_source)} images {run.test_source.name}"] if tested else [])


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
        self._losses = functools.partial(_sum_of_losses, run.loss)

    def __call__(self, previous: int, step: int, state: TrainState, metrics: Metrics) -> None:
        if not crossed(self._every, previous, step):
            return
        total, count, params = 0.0, 0, whole(self._run.mesh, state.ema[0])
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
