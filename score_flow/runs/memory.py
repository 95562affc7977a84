"""What is said when memory does not suffice: how much is needed, and what to change."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from score_flow.errors import UserError
from score_flow.runs.files import first_line, is_full, said

WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc", "Unable to allocate")
TRAINING = (
    "raise training.microbatches (2, 4, ...: the same result), set network.remat=full (where the network has it) or "
    "training.fsdp=True, or lower training.batch_size"
)


def is_exhausted(error: BaseException) -> bool:
    """Say whether an error means that memory was asked for and not there."""
    if isinstance(error, UserError) or is_full(error):  # of a disk
        return False
    return isinstance(error, MemoryError) or any(word in str(error) for word in WORDS)


def advice(error: BaseException, mode: str) -> str:
    """Return what is said where the program is not known: the batch of a mode to lower."""
    knob = TRAINING if mode in ("train", "train_deq") else "lower eval.batch_size"
    return f"out of memory ({first_line(error)}): {knob}."


@contextlib.contextmanager
def explained(batch_size: int, needed: Callable[[], int]) -> Iterator[None]:
    """Turn exhausted memory in training into a UserError with the batch, the need of a step and the knobs.

    needed: the bytes of each device, asked only then: compiling a program takes long.
    """
    try:
        yield
    except Exception as error:
        if not is_exhausted(error):
            raise
        import jax  # here: whoever asks for this module to tell of a mistake need not wait for it

        estimate = ""
        with contextlib.suppress(Exception):  # that may be too much as well
            estimate = f" takes about {said(needed())}"
        raise UserError(
            f"out of memory: a step of the global batch {batch_size}{estimate} on each of {jax.device_count()} "
            f"device(s): {TRAINING}."
        ) from error


def needed_by(program: Callable[..., Any], *shapes: Any) -> int:
    """Return the bytes that a compiled function takes on each device: arguments, results and what is between."""
    while isinstance(program, functools.partial):
        program, shapes = program.func, (*program.args, *shapes)
    return taken(program.lower(*shapes).compile().memory_analysis())


def taken(use: Any) -> int:
    """Return the bytes of a device by XLA's memory_analysis: results that overwrite arguments count once."""
    return use.argument_size_in_bytes + use.output_size_in_bytes + use.temp_size_in_bytes - use.alias_size_in_bytes
