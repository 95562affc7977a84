"""The training step of a config, compiled for a machine: the program that training would run, from shapes alone."""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo
from jaxtyping import PyTree

from evaluation.plan.chips import CUDNN, GIB, GPU, GPUS, Machine, chip_of
from evaluation.plan.flops import flops
from evaluation.plan.program import Program, read
from score_flow.build import experiment
from score_flow.config.options import Config
from score_flow.data.features import FEATURES, features_of
from score_flow.data.pipeline import check_divides
from score_flow.experiment import Experiment
from score_flow.runs import memory
from score_flow.runs.sharding import batch_sharding, make_mesh, state_shardings
from score_flow.training.ema import n_averages
from score_flow.training.flat import tree_of
from score_flow.training.gradients import check_microbatches
from score_flow.training.run import holding, initial_state, program_of
from score_flow.training.steps import TrainState
from score_flow.types import Batch

# Whether Triton or cuBLAS multiplies faster a compiler tries on the GPU; without one its guess may not even compile.
ABSENT_GPU = {"xla_gpu_enable_triton_gemm": False}


class Step(NamedTuple):
    """What training compiles: its program of steps, and the shapes that it is called with."""

    run: Experiment
    program: Any
    state: TrainState
    batch: Batch
    shardings: TrainState


class Need(NamedTuple):
    """Bytes on each device: what a program is given, what it makes in between, and what it returns anew.

    aliased: of what it is given, the part that it writes its results over.
    """

    arguments: int
    temporaries: int
    results: int
    aliased: int
    total: int


class Compiled(NamedTuple):
    """A compiled step; of one that the compiler refused for its memory there is the total alone, if it said that."""

    need: Need | None
    total: int | None
    program: Program | None

    def fits(self, machine: Machine) -> bool:
        return self.program is not None and self.total <= machine.memory


def step_of(config: Config, machine: Machine, remembered: Mapping[str, Any] | None = None) -> Step:
    """Build the objects of a run on a machine; raises UserError where training would, no data set is read for it.

    remembered: the facts of the training data that a run keeps (build.experiment).
    """
    options = config.training
    mesh = make_mesh(options.fsdp, machine.devices)
    check_divides(options.batch_size, mesh.size)
    run = dataclasses.replace(experiment(config, remembered), mesh=mesh)
    check_microbatches(options.microbatches, run.loss, options.batch_size, mesh.size)
    return of_run(run, config)


def of_run(run: Experiment, config: Config) -> Step:
    """Return the step of objects that are built, on their mesh."""
    options, mesh, one = config.training, run.mesh, example(run)
    state = jax.eval_shape(functools.partial(initial_state, run, n_averages(config.model)), run.loss, one)
    state = jax.eval_shape(holding(run, config, state), state)
    shardings = state_shardings(mesh, state)
    leading = options.n_jitted_steps, options.batch_size
    batch = {name: jax.ShapeDtypeStruct((*leading, *x.shape[1:]), x.dtype) for name, x in one.items()}
    return Step(run, program_of(run, config, shardings), state, batch, shardings)


def example(run: Experiment) -> Batch:
    """Return the shapes of one example as a data set gives it: levels of an image, or moments of latents; its label."""
    h, w, c = run.image_shape
    image = ((1, h, w, 2 * c), jnp.float32) if run.latent else ((1, h, w, c), jnp.uint8)
    label = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)} if run.conditioning.num_classes else {}
    features = {}
    if run.aligns:  # whose shape the data set alone knows
        features = {FEATURES: jax.ShapeDtypeStruct((1, *features_of(run.train_source).shape[1:]), jnp.float16)}
    return {"image": jax.ShapeDtypeStruct(*image)} | label | features


def compiled(step: Step, machine: Machine) -> Compiled:
    """Compile a step, which takes as long as it does at the start of training."""
    program, arguments = step.program, (step.state, step.batch)
    while isinstance(program, functools.partial):
        program, arguments = program.func, (*program.args, *arguments)
    try:
        with cudnn_of(machine):
            done = program.lower(*arguments).compile(ABSENT_GPU if absent_gpu(machine) else None)
    except Exception as error:
        if not memory.is_exhausted(error):
            raise
        return Compiled(None, said_to_need(str(error)), None)
    use = done.memory_analysis()
    # By the sum of its parts a TPU's program takes more than by the peak, which is what its compiler judges by; of the
    # CPU's compiler the peak is without what is in between.
    total = use.peak_memory_in_bytes if machine.devices[0].platform == "tpu" else memory.taken(use)
    arguments, results = use.argument_size_in_bytes, use.output_size_in_bytes - use.alias_size_in_bytes
    need = Need(arguments, total - arguments - results, results, use.alias_size_in_bytes, total)
    return Compiled(need, total, read(done.as_text()))


def said_to_need(refusal: str) -> int | None:
    """Return the bytes that a compiler for TPUs refused to give; what it calls temporaries are the arguments too."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds", refusal)
    return int(float(found[1]) * GIB * {"K": 2**-20, "M": 2**-10, "G": 1, "T": 2**10}[found[2]]) if found else None


def absent_gpu(machine: Machine) -> GPU | None:
    """Return the GPU that a machine is made of, unless that is this machine."""
    return GPUS.get(machine.name.partition(":")[0])


@contextlib.contextmanager
def cudnn_of(machine: Machine) -> Iterator[None]:
    """While it traces, jax asks the cuDNN and the GPU of this machine what they can: here those of the target answer.

    Without it tracing raises "cuDNN is not detected" where there is none. It is jax's own module that is asked.
    """
    gpu = absent_gpu(machine)
    if gpu is None:
        yield
        return
    major, minor, patch = CUDNN
    answers = {
        "check_cudnn_version": lambda: 10000 * major + 100 * minor + patch,
        "check_compute_capability": lambda asked: gpu.capability >= float(asked),
    }
    before = {asked: getattr(fused_attention_stablehlo, asked) for asked in answers}
    try:
        vars(fused_attention_stablehlo).update(answers)
        yield
    finally:
        vars(fused_attention_stablehlo).update(before)


def useful_flops(step: Step) -> int:
    """Count what a step needs: three forward passes of the loss. Raises ValueError for what cannot be counted."""

    def loss(state: TrainState, batch: Batch) -> jax.Array:
        return step.run.loss(tree_of(state.params), state.time_state, jax.random.key(0), batch)[0]

    batch = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in step.batch.items()}
    return 3 * flops(loss, step.state, batch)


def least_seconds(run: Experiment, config: Config) -> float | None:
    """Return the seconds of a step on the devices of a run, were they at their peak in bfloat16; None: not known."""
    chip = chip_of(run.mesh.devices.flat[0].device_kind)
    if chip is None:
        return None
    try:
        return useful_flops(of_run(run, config)) / (run.mesh.size * chip.peak)
    except ValueError:  # of what cannot be counted
        return None


def shares(step: Step) -> dict[str, int]:
    """Return the bytes of each part of what a step is given that one device holds."""
    state, layout = step.state, step.shardings
    batch = jax.tree.map(lambda _: batch_sharding(step.run.mesh, leading=1), step.batch)
    return {
        "parameters": _share(state.params, layout.params), "averages": _share(state.ema, layout.ema),
        "optimiser": _share(state.opt_state, layout.opt_state), "batch": _share(step.batch, batch),
    }  # fmt: skip


def _share(tree: PyTree, shardings: PyTree) -> int:
    sizes = jax.tree.map(lambda x, s: x.dtype.itemsize * math.prod(s.shard_shape(x.shape)), tree, shardings)
    return sum(jax.tree.leaves(sizes))
