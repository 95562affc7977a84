"""Exhausted memory is said with the batch, the need and the knob; other errors pass."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.errors import UserError
from score_flow.runs import memory

EXHAUSTED = [
    MemoryError(),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1.2GiB"),
    jax.errors.JaxRuntimeError("INTERNAL: Error dispatching computation: Out of memory allocating 14400000000 bytes."),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", EXHAUSTED)
def test_exhausted_memory_is_one_line(error):
    with pytest.raises(UserError) as said, memory.explained(48, lambda: 3_000_000_000):
        raise error
    knobs = ("training.batch_size", "training.microbatches", "remat", "fsdp")
    for part in ("out of memory", "global batch 48", "about 3 GB", *knobs):
        assert part in str(said.value)
    assert "\n" not in str(said.value)
    assert "eval.batch_size" in memory.advice(error, "eval") and "training.batch_size" in memory.advice(error, "train")


def test_an_estimate_that_fails_is_left_out():
    with pytest.raises(UserError, match=r"global batch 48 on each of"), memory.explained(48, lambda: 1 / 0):
        raise MemoryError


@pytest.mark.parametrize("error", [ValueError("a shape"), KeyError("out"), jax.errors.JaxRuntimeError("INTERNAL: x")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as passed, memory.explained(48, lambda: 0):
        raise error
    assert passed.value is error


def test_what_a_program_needs_is_at_least_its_arguments_and_results():
    shape = jax.ShapeDtypeStruct((1000, 1000), np.float32)
    program = jax.jit(lambda scale, x: scale * x @ x)
    scale = jax.ShapeDtypeStruct((), np.float32)
    assert 8_000_000 <= memory.needed_by(functools.partial(program, scale), shape) <= 17_000_000
    donating = jax.jit(jnp.negative, donate_argnums=0)
    assert memory.needed_by(donating, shape) < 8_000_000  # in place


FAULTS = """
import json, resource, threading
from score_flow.runs import memory
kept = {keeps} and memory.keep_freed()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(80 << 20)
    found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
found = []
for _ in range(3):
    thread = threading.Thread(target=faults)
    thread.start()
    thread.join()
print(json.dumps([kept, found]))
"""


def faults(keeps: bool, **variables: str) -> tuple[bool, list[int]]:
    """Page faults of three arrays of 80 MiB one after the other, each of a thread."""
    code = FAULTS.format(keeps=keeps)
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | variables, capture_output=True, check=True)
    return tuple(json.loads(done.stdout))


def test_freed_memory_comes_back_without_a_fault():
    kept, found = faults(True)
    if not kept:
        pytest.skip("another C library, or its own variables are set")
    assert found[0] > 1000 and max(found[1:]) < 100
    assert min(faults(False)[1]) > 1000


def test_the_variables_of_the_library_have_the_last_word():
    kept, found = faults(True, MALLOC_ARENA_MAX="4")
    assert not kept and min(found) > 1000
