"""Training of one run: restore or begin, fit, save, and leave a workdir from which anything can go on."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from score_flow.config.loading import with_settings
from score_flow.config.options import Config, TrainOptions
from score_flow.data.base import Source
from score_flow.data.compare import describe_classes, refuse_untrained_classes, refuse_untrained_start
from score_flow.data.pipeline import check, indices
from score_flow.errors import Preempted
from score_flow.experiment import Experiment
from score_flow.losses.base import Loss
from score_flow.model import count_parameters
from score_flow.runs import memory, provenance
from score_flow.runs.checkpoint import target
from score_flow.runs.files import write_whole
from score_flow.runs.places import Place
from score_flow.runs.preemption import Preemption
from score_flow.runs.processes import Ahead, is_main
from score_flow.runs.sharding import group_size, replicated, state_shardings, whole
from score_flow.runs.workdir import write_config
from score_flow.training.accepting import FIXED, settled
from score_flow.training.ema import n_averages
from score_flow.training.faults import Faults, refuse_uneven
from score_flow.training.gradients import check_microbatches
from score_flow.training.loop import Loop
from score_flow.training.optimiser import layout_for, optimiser_of, rate_of, updates_of
from score_flow.training.saver import Saver, Snapshot, remembered
from score_flow.training.starting import Beginning, started
from score_flow.training.steps import TrainState, held, init_state, keeps_unit, make_train_steps
from score_flow.training.telling import Told
from score_flow.types import Batch


def train(
    run: Experiment,
    config: Config,
    workdir: Place,
    snapshot: Snapshot,
    fixed: tuple[str, ...] = FIXED,
    *,
    least_seconds: float | None = None,
    beginning: Beginning | None = None,
) -> None:
    """Train to config.training.n_iters, from the newest good checkpoint of the workdir if there is one.

    fixed: the sections of the config that must be those of that checkpoint, unless config.training.accept names them.
    least_seconds: of a step, were the devices at their peak. beginning: the weights that a run begins with which has
    none.
    """
    config, options = _of_found(run, config), config.training
    _refuse(run, config, begins=remembered(workdir) is None)
    told, faults = Told(config, workdir), Faults(options.non_finite)
    sheet = lambda step, params: told.picture(step, "samples", snapshot(step, whole(run.mesh, params)))  # noqa: E731
    saver = Saver(workdir, config, sheet, facts=run.data_facts, faults=faults)
    fresh, shapes, shardings = fresh_state(run, config)
    warm = started(beginning, run, n_averages(config.model), fresh, target(shapes, shardings))
    hold = holding(run, config, shapes)
    held_shapes = jax.eval_shape(hold, shapes)

    def resume(**first: Any) -> tuple[int, TrainState]:
        step, state = saver.resume(config, fresh, shapes, shardings, fixed, warm, **first)
        return step, hold(state)

    start, state = resume()
    ahead = start - updates_of(state.opt_state) - faults.skipped  # steps of those who trained imported weights
    run = dataclasses.replace(run, optimiser=optimiser_of(config.optim, options.n_iters - ahead))
    write_config(workdir, settled(config))
    provenance.append(workdir, start)
    _introduce(run, shapes, workdir, start, options)
    reseeded = dataclasses.replace(run, seed=faults.seed_of(run.seed))
    steps = program_of(reseeded, config, state_shardings(run.mesh, held_shapes))
    loop = Loop(run, config, workdir, saver, faults, told, steps, ahead, least_seconds)
    with contextlib.ExitStack() as closing, Preemption() as preemption:
        closing.callback(told.close)
        closing.callback(saver.close)
        needed = functools.partial(_needed, steps, held_shapes, run.examples, options)
        closing.enter_context(memory.explained(options.batch_size, needed))
        told.start()
        saver.asked = Ahead(stop=lambda: preemption.signalled, save=saver.due)
        while (step := loop.attempt(start, state)) is None:
            start, state = saver.go_back(loop.why, lambda: hold(fresh()), resume)
    if step < options.n_iters:
        raise Preempted(f"stopped and saved at step {step}; run the same command to go on.")


def _of_found(run: Experiment, config: Config) -> Config:
    """Return a config that names a teacher by the weights that were found."""
    teacher = getattr(run.loss, "awaited", "")
    return with_settings(config, {"training.teacher": teacher}) if teacher else config


def _refuse(run: Experiment, config: Config, begins: bool) -> None:
    """Raise UserError for what cannot be trained."""
    options = config.training
    group_size(options.fsdp, run.mesh.size)
    rate_of(config.optim, options.n_iters)  # of a dequantiser they are fewer than run.optimiser was made for
    refuse_uneven(options)
    check_data(run, options, begins)
    check_microbatches(options.microbatches, run.loss, options.batch_size, run.mesh.size)


def program_of(run: Experiment, config: Config, shardings: TrainState) -> Callable:
    """Return the compiled steps of a run, called with a state and a batch (k, b, ...)."""
    averages = config.model
    return make_train_steps(
        run.loss, run.optimiser, seed=run.seed, mesh=run.mesh, shardings=shardings,
        microbatches=config.training.microbatches,
        ema_rates=averages.ema_rate, ema_warmup=averages.ema_warmup, ema_stds=averages.ema_std,
        non_finite=config.training.non_finite,
    )  # fmt: skip


def fresh_state(run: Experiment, config: Config) -> tuple[Callable[[], TrainState], TrainState, TrainState]:
    """(what makes the state that training begins in, its shapes, their layouts)."""
    source = run.examples
    first = indices(len(source), config.training.batch_size, seed=run.seed, step=0)
    init = functools.partial(initial_state, run, n_averages(config.model))
    shapes = jax.eval_shape(init, run.loss, source.read(first[:1]))  # of any number of examples
    shardings = state_shardings(run.mesh, shapes)
    begin = jax.jit(init, in_shardings=(None, replicated(run.mesh)), out_shardings=shardings)
    return lambda: begin(run.loss, source.read(first)), shapes, shardings


def holding(run: Experiment, config: Config, shapes: TrainState) -> Callable[[TrainState], TrainState]:
    """Return what brings a state of these shapes into the form in which it is trained."""
    # In vectors a kernel has no outputs that could each be normalised.
    layout = None if keeps_unit(run.loss) else layout_for(config.optim, shapes.params, run.mesh)
    return functools.partial(held, optimiser=run.optimiser, layout=layout)


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
