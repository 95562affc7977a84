"""--mode=plan: what a step of training takes on machines that need not be here. Nothing is trained or written."""

import collections
import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from evaluation.plan.chips import Machine
from evaluation.plan.compiling import Compiled, Step, compiled, shares, step_of, useful_flops
from evaluation.plan.fitting import fitting, remedies
from evaluation.plan.program import Program, attention, collectives, kernels, largest
from score_flow.config.options import Config
from score_flow.model import count_parameters
from score_flow.runs.files import said
from score_flow.runs.processes import is_main
from score_flow.training.gradients import sliceable

SHOWN = 4  # of the largest arrays, and of the collectives
Remembered = Mapping[str, Any] | None  # the facts of the training data that a run keeps


def plan(config: Config, machine: Machine, remembered: Remembered = None) -> None:
    """Compile the training step of a config for a machine and print what it takes, a line as soon as it is known.

    Raises UserError where training would refuse.
    """
    step = step_of(config, machine, remembered)
    about_step(config, machine, step)
    start = time.time()
    done = compiled(step, machine)
    about_memory(machine, step, done)
    if done.program:
        about_program(done.program, step, config.training.n_jitted_steps)
    say("compiled", f"in {time.time() - start:.0f} s; what follows compiles more of them")
    if not done.fits(machine):
        say("to make it fit", first_that_fits(config, machine, remembered, step))
    say("batch", batch_that_fits(config, machine, remembered, done))


def say(what: str, text: str) -> None:
    """Print a line of the plan, on one process."""
    if is_main():
        print(f"{what:<16} {text}", flush=True)


def about_step(config: Config, machine: Machine, step: Step) -> None:
    """Print the machine, the parameters and the arithmetic."""
    n, chip, network = len(machine.devices), machine.chip, step.run.loss.network
    memory = f"{said(machine.memory)} each, {machine.of_memory}"
    say("machine", f"{machine.name}: {n} x {machine.devices[0].device_kind}, {memory}")
    parameters = f"{count_parameters(step.state.params):,} of {type(network).__name__}"
    say("parameters", f"{parameters}, which computes in {getattr(network, 'dtype', 'float32')}")
    try:
        useful = useful_flops(step)
    except ValueError as error:
        say("arithmetic", str(error))
        return
    text = f"{useful:.3g} useful FLOPs a step of the global batch {config.training.batch_size}"
    if chip:
        least = 1e3 * useful / (n * chip.peak)
        text += f": {least:.3g} ms at least, {n} x {chip.peak / 1e12:.0f} TFLOP/s being the peak in bfloat16"
    say("arithmetic", text)


def about_memory(machine: Machine, step: Step, done: Compiled) -> None:
    """Print the bytes of each device."""
    say("given to a step", ", ".join(f"{name} {said(size)}" for name, size in shares(step).items()))
    if need := done.need:
        say("", f"in all {said(need.arguments)}, of which results overwrite {said(need.aliased)}")
        say("made by a step", f"{said(need.temporaries)} in between, {said(need.results)} of other results")
    total = "more than there is" if done.total is None else said(done.total)
    verdict = "it fits" if done.fits(machine) else "it does not fit"
    say("memory", f"{total} on each device, of {said(machine.memory)}: {verdict}")


def about_program(program: Program, step: Step, k: int) -> None:
    """Print what is in a program of k steps, by step."""
    for title, each in zip(("largest arrays", *("",) * SHOWN), largest(program, SHOWN), strict=False):
        say(title, f"{each.shape} {said(each.shape.bytes)}: {place(each.origin)}")
    found, counts, sizes = collectives(program), collections.Counter(), collections.Counter()
    for each in found:
        counts[each.kind] += each.count
        sizes[each.kind] += each.bytes
    share = sum(sizes.values()) / k / (2 * count_parameters(step.state.params))
    kinds = [f"{kind} {counts[kind] / k:g} x, {said(size / k)}" for kind, size in sizes.most_common()]
    say("collectives", "; ".join([*kinds, f"in all {share:.2g} x the parameters in bfloat16"]) if kinds else "none")
    for each in found[:SHOWN]:
        arrays = ", ".join(str(shape) for shape in each.shapes[:3]) + ", ..." * (len(each.shapes) > 3)
        say("", f"{each.kind} {each.count / k:g} x {arrays}: {place(each.origin)}")
    unknown = f" ({program.unknown_loops} loops counted once)" if program.unknown_loops else ""
    say("kernels", f"{kernels(program) / k:,.0f} a step{unknown}")
    say("attention", attention(program))


def place(origin: str, most: int = 70) -> str:
    """Shorten a place in the program."""
    name = origin.removeprefix("jit(train_steps)/") or "the compiler's own"
    return name if len(name) <= most else f"...{name[-most:]}"


def first_that_fits(config: Config, machine: Machine, remembered: Remembered, step: Step) -> str:
    """Return the first flags that make a step fit, each compiled, and what those before them came to."""
    tried, remat = [], getattr(step.run.loss.network, "remat", None)
    state_fits = sum(shares(step).values()) <= machine.memory
    can = {"sliceable": sliceable(step.run.loss), "state_fits": state_fits}
    for remedy in remedies(config, remat, len(machine.devices), **can):
        done = compiled(step_of(remedy.config, machine, remembered), machine)
        total = "too much" if done.total is None else said(done.total)
        if done.fits(machine):
            return ", ".join([f"{remedy.flags}: {total}", *tried])
        tried.append(f"({remedy.flags} does not: {total})")
    return ", ".join(["a smaller batch, or larger machines", *tried])


def batch_that_fits(config: Config, machine: Machine, remembered: Remembered, done: Compiled) -> str:
    """Return about the largest global batch that fits with these flags, and how it was found."""

    def total_of(batch: int) -> int | None:
        training = dataclasses.replace(config.training, batch_size=batch)
        step = step_of(dataclasses.replace(config, training=training), machine, remembered)
        return compiled(step, machine).total

    n = len(machine.devices) * config.training.microbatches
    fit = fitting(total_of, machine.memory, (config.training.batch_size, done.total), n)
    how = f"by a line through what {1 + fit.compiled} compiled steps need"
    if not fit.batch:
        return f"none fits with these flags, not even {fit.too_much}, {how}"
    return f"{fit.batch} fits with these flags and is about the largest, {how}"
