"""What compiled programs say, of machines that need not be here: kernels, bytes moved, products, collectives, memory.

A row is a program, a train step or a likelihood of a published model in bfloat16, compiled for a machine (as by
--mode=plan, with the plug-in of its devices and none of these). Nothing is run, so that these are no speeds: they are
what speed depends on, and tests/benchmarks/test_compiled.py holds main to them.

    python -m benchmarks.compiled ddpmpp_cifar10 --topology=h100:1 [--out benchmarks/results/compiled.json]

kernels: fusions, copies, calls of libraries and the like, a loop's as often as it goes round. moved: bytes of float32
arrays that are copied or transposed, and nothing else is done with. float32_products: matrix products and convolutions
of two float32 arrays.
"""

import argparse
import functools
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.measure import made_by
from evaluation.plan.chips import Machine, machine
from evaluation.plan.compiling import Step, compiled, step_of
from evaluation.plan.program import Instruction, Program, attention, collectives, kernels
from sampling.base import example_keys
from sampling.flow import Solver
from sampling.likelihood import log_likelihood
from score_flow.config.loading import load
from score_flow.errors import UserError, check_choice
from score_flow.runs.sharding import batch_sharding, replicated
from score_flow.types import Batch, Params

RESULTS = Path(__file__).parent / "results" / "compiled.json"
MOVES = {"parameter", "bitcast", "copy", "transpose", "reshape", "tuple", "get-tuple-element"}
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "optax", "diffrax")
ONE_STEP = {"model.precision": "bf16", "training.n_jitted_steps": 1}
SIT = {"data.image_shape": (32, 32, 4), "data.num_classes": 1000, "training.batch_size": 256}
CIFAR = {"data.image_shape": (32, 32, 3), "training.batch_size": 128}


class Case(NamedTuple):
    """A program that is compiled: of a recipe with settings, on several devices with those of `split` too."""

    recipe: str
    settings: dict[str, Any]
    split: dict[str, Any] = {}  # noqa: RUF012 - never written
    make: Callable[[Step], Step] = lambda step: step


def likelihood(step: Step) -> Step:
    """The likelihood of a batch, by the default solver, in the place of the train step."""
    run, size = step.run, step.batch["image"].shape[1]

    @functools.partial(jax.jit, in_shardings=(replicated(run.mesh), batch_sharding(run.mesh)))
    def program(params: Params, batch: Batch):
        with jax.sharding.use_abstract_mesh(run.mesh.abstract_mesh):
            denoiser = run.model.bind(params, {"label": batch["label"]})
            return log_likelihood(batch["key"], denoiser, batch["x0"], solver=Solver())

    batch = {
        "x0": jax.ShapeDtypeStruct((size, *run.image_shape), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "key": jax.eval_shape(lambda: example_keys(0, jnp.arange(size))),
    }
    params = jax.eval_shape(run.init, jax.random.key(0))
    return step._replace(program=program, state=params, batch=batch)


CASES = {
    "ddpmpp_cifar10": Case("configs/vp/cifar10_ddpmpp_continuous.py", CIFAR),
    "ncsnpp_cifar10": Case("configs/ve/cifar10_ncsnpp_continuous.py", CIFAR),
    "adm_64": Case(
        "configs/improved_diffusion/imagenet64_uncond_hybrid.py", CIFAR | {"data.image_shape": (64, 64, 3)}
    ),
    "sit_b_2": Case("configs/sit/b_2_256.py", SIT),
    "sit_xl_2": Case("configs/sit/xl_2_256.py", SIT, {"training.fsdp": True}),
    "sit_b_2_likelihood": Case("configs/sit/b_2_256.py", SIT | {"training.batch_size": 32}, make=likelihood),
}  # fmt: skip


def measure(name: str, topology: str) -> dict[str, Any]:
    """Compile a program for a machine and count what it does."""
    check_choice("program", name, CASES)
    case, target = CASES[name], machine(topology)
    several = case.split if len(target.devices) > 1 else {}
    config = load(case.recipe, [], ONE_STEP | case.settings | several)
    step, start = case.make(step_of(config, target)), time.perf_counter()
    counted = count(step, target)
    about = {"program": name, "topology": topology, "batch_size": case.settings["training.batch_size"]} | several
    return about | counted | {
        "compile_seconds": round(time.perf_counter() - start), **made_by(*PACKAGES)
    }  # fmt: skip


def count(step: Step, target: Machine) -> dict[str, Any]:
    """What a compiled program does, in numbers, each the better the smaller; raises UserError where it does not fit."""
    done = compiled(step, target)
    if done.program is None:
        raise UserError(f"the compiler refuses the program: it needs {done.total} bytes of {target.memory}.")
    sent = collectives(done.program)
    return {
        "kernels": kernels(done.program), "moved": moved(done.program),
        "float32_products": float32_products(done.program),
        "collectives": sum(each.count for each in sent), "collective_bytes": sum(each.bytes for each in sent),
        "memory": done.total, "temporaries": done.need.temporaries, "attention": attention(done.program),
    }  # fmt: skip


def moved(program: Program) -> int:
    """Bytes of float32 arrays that are made by nothing but copies and transposes."""
    return sum(
        times * sum(shape.bytes for shape in each.shapes if shape.dtype == "f32")
        for each, times in program.instructions()
        if _only_moves(each, program)
    )


def _only_moves(each: Instruction, program: Program) -> bool:
    if each.op != "fusion":
        return each.op in ("copy", "transpose", "copy-start")
    inside = {line.op for name in each.calls("calls") for line in program.computations[name]}
    return inside <= MOVES and not inside.isdisjoint({"copy", "transpose"})


def float32_products(program: Program) -> int:
    """How many matrix products and convolutions have two float32 operands."""
    found = 0
    for name, times in program.times.items():
        types = {line.name: {shape.dtype for shape in line.shapes[:1]} for line in program.computations[name]}
        for line in program.computations[name]:
            library = line.op == "custom-call" and re.search(r"cublas|cudnn\$conv|matmul", line.rest)
            if line.op in ("dot", "convolution") or library:
                operands = [types.get(operand) for operand in line.operands[:2]]
                found += times * (operands == [{"f32"}, {"f32"}])
    return found


def keep(row: dict[str, Any], file: Path) -> None:
    """Put a row in its place in a file of rows, one a line."""
    rows = json.loads(file.read_text()) if file.is_file() else []
    place = lambda each: (each["topology"], list(CASES).index(each["program"]))  # noqa: E731
    rows = sorted([each for each in rows if place(each) != place(row)] + [row], key=place)
    file.write_text("[\n" + ",\n".join(json.dumps(each) for each in rows) + "\n]\n")


def main(argv: list[str] | None = None) -> int:
    """Count one program, print the row and return the exit code."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Count what a compiled program does.")
    parser.add_argument("program", help=", ".join(CASES))
    parser.add_argument("--topology", default="h100:1", help="as of --mode=plan (h100:1)")
    parser.add_argument("--out", type=Path, help="a JSON file of rows in which this one takes its place")
    flags = parser.parse_args(argv)
    try:
        row = measure(flags.program, flags.topology)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(row), flush=True)
    if flags.out:
        keep(row, flags.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
