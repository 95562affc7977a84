"""Memory: how a step gets what the last one freed, and what is said when it does not suffice."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

from score_flow.errors import UserError
from score_flow.runs.files import first_line, is_full, said

WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc", "Unable to allocate")
TRAINING = (
    "raise training.microbatches (2, 4, ...: the same result), set network.remat=full (where the network has it) or "
    "training.fsdp=True, or lower training.batch_size"
)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
KEPT = 1 << 30


def keep_freed() -> bool:
    """Have the C library keep freed memory, up to a GiB, for whoever asks next; return whether it will.

    A program takes what it computes with anew at each call. Of the system each page of it costs a fault: a sixth of a
    step of a small network on a CPU. All threads share one heap, as that of a thread's own ends at 64 MiB; so call it
    before they start. glibc's own variables have the last word (MALLOC_..., GLIBC_TUNABLES); other libraries have none
    of it.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return all([mallopt(M_ARENA_MAX, 1), mallopt(M_MMAP_THRESHOLD, KEPT), mallopt(M_TRIM_THRESHOLD, KEPT)])


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
