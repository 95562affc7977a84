"""What a compiled program says of itself: collectives and their bytes, kernels, its largest arrays, fused attention.

It is read from the text of XLA's optimised HLO, as its compilers for CPU, GPU and TPU print it: the program of each
device. Loops count as often as they go round.
"""

import collections
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# What names, moves or orders values, and computes nothing.
SILENT = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "call", "conditional", "after-all",
    "partition-id", "replica-id", "opt-barrier", "copy-start", "slice-start", "add-dependency", "domain",
}  # fmt: skip
SILENT_CALLS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ShapeTreeHint")
FUSED_ATTENTION = re.compile(r"fmha|flash|attention", re.IGNORECASE)

HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
SHAPE = re.compile(r"\b([a-z]+\d*(?:e\d\w*)?)\[([\d,]*)\]((?:\{[^}]*\})?)")
OPERAND = re.compile(r"%([\w.-]+)")


class Shape(NamedTuple):
    """An array on one device; on_chip: in a TPU's scratch memory."""

    dtype: str
    sizes: tuple[int, ...]
    on_chip: bool = False

    @property
    def bytes(self) -> int:
        bits = {"pred": 8, "token": 0}.get(self.dtype) or int((re.search(r"\d+", self.dtype) or ["0"])[0])
        return math.prod(self.sizes) * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.sizes))}]"


class Instruction(NamedTuple):
    """A line: the name and the arrays of its result, what is done, the rest of the line."""

    name: str
    shapes: tuple[Shape, ...]
    op: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return OPERAND.findall(self.rest.partition(")")[0])

    @property
    def origin(self) -> str:
        """The place in the Python program that it is of."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    def calls(self, *names: str) -> list[str]:
        """Names of the computations that an attribute of it gives."""
        return [name for key in names for name in re.findall(rf"\b{key}=\{{?%?([\w.-]+)", self.rest)]


class Collective(NamedTuple):
    """Collectives of the same arrays at the same place: kind, whole arrays, how often a program does it, where."""

    kind: str
    shapes: tuple[Shape, ...]
    count: int
    origin: str

    @property
    def bytes(self) -> int:
        """What a device sends, to leading order; an all-reduce is a reduce-scatter and an all-gather."""
        return self.count * sum(shape.bytes for shape in self.shapes) * (2 if self.kind == "all-reduce" else 1)


class Program(NamedTuple):
    """The computations of a program by their names, and how often each runs."""

    computations: dict[str, list[Instruction]]
    times: collections.Counter[str]
    fused: frozenset[str]
    unknown_loops: int

    def instructions(self) -> Iterator[tuple[Instruction, int]]:
        """All that runs on its own, outside of fusions, and how often."""
        for name, times in self.times.items():
            if name not in self.fused:
                yield from ((instruction, times) for instruction in self.computations[name])


def read(text: str) -> Program:
    """Read the text of a compiled program."""
    computations, entry, body = {}, "", []
    for line in text.splitlines():
        if head := HEAD.match(line):
            computations[head[2]] = body = []
            entry = head[2] if head[1] else entry
        elif found := LINE.match(line):
            body.append(Instruction(found[1], shapes_in(found[2]), found[3], found[4]))
    times, fused, unknown = collections.Counter(), set(), 0

    def visit(name: str, n: int, inside: bool) -> None:
        nonlocal unknown
        times[name] += n
        fused.update([name] if inside else [])
        for each in computations[name]:
            if each.op == "while":
                rounds = trips(each, computations)
                unknown += rounds is None
                for called in each.calls("body"):
                    visit(called, n * (1 if rounds is None else rounds), inside)
            elif each.op in ("call", "conditional", "async-start", "fusion"):
                names = ("to_apply", "calls", "true_computation", "false_computation")
                for called in [*each.calls(*names), *_branches(each)]:
                    visit(called, n, inside or each.op == "fusion")

    visit(entry, 1, False)
    return Program(computations, times, frozenset(fused), unknown)


def _branches(each: Instruction) -> list[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", each.rest)
    return OPERAND.findall(found[1]) if found else []


@functools.lru_cache(maxsize=100_000)
def shapes_in(text: str) -> tuple[Shape, ...]:
    """Return the arrays of a type as HLO writes it."""
    return tuple(
        Shape(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(1)" in layout)
        for dtype, sizes, layout in SHAPE.findall(text)
    )


def trips(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """Return how often a loop goes round: as the compiler says, or to what its condition compares; None: unknown."""
    if said := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
        return int(said[1])
    [condition] = loop.calls("condition")
    lines = list(computations[condition])
    lines += [line for each in computations[condition] for name in each.calls("calls") for line in computations[name]]
    limits = [re.match(r"(\d+)\)", line.rest) for line in lines if line.op == "constant"]
    compared = [line for line in lines if line.op == "compare" and "direction=LT" in line.rest]
    return int(limits[0][1]) if len(compared) == 1 and len(limits) == 1 and limits[0] else None


def collectives(program: Program) -> list[Collective]:
    """Return the collectives of a program, the largest first; the parts of one that a TPU overlaps are one."""
    found = collections.Counter()
    for name, times in program.times.items():
        body = program.computations[name]
        shapes = {each.name: each.shapes for each in body}
        for each in body:
            kind = each.op.removesuffix("-start")
            if kind not in COLLECTIVES or (each.op.endswith("-start") and kind == each.op):
                continue
            if "chain_id=" in each.rest and not _starts(each.name, body):
                continue
            if name.startswith("all-reduce-scatter"):  # what the TPU's compiler makes of the two
                kind = "reduce-scatter"
            given = [shape for operand in each.operands for shape in shapes.get(operand, ())]
            whole = tuple(each.shapes[len(given) :]) if each.op == "all-gather-start" else each.shapes
            whole = whole if kind == "all-gather" or not given else tuple(given)
            found[kind, whole, each.origin] += times
    listed = [Collective(kind, whole, times, origin) for (kind, whole, origin), times in found.items()]
    return sorted(listed, key=lambda each: -each.bytes)


def _starts(name: str, body: list[Instruction]) -> bool:
    """Say whether a collective that is carried through several fusions begins in this one."""
    return any("AsyncCollectiveStart" in each.rest and name in each.operands for each in body)


def kernels(program: Program) -> int:
    """Count what a device is asked to do: fusions, calls of libraries, collectives and single operations."""
    return sum(
        times
        for each, times in program.instructions()
        if each.op not in SILENT and not each.op.endswith(("-done", "-update"))
        and not (each.op == "custom-call" and any(name in each.rest for name in SILENT_CALLS))
    )  # fmt: skip


def attention(program: Program) -> str:
    """Say how attention is computed: by kernels that hold its weights on the chip, or with arrays of them."""
    fused = collections.Counter()
    for each, times in program.instructions():
        target = re.search(r'custom_call_target="([^"]*)"', each.rest)
        if target and FUSED_ATTENTION.search(target[1] + (each.origin if target[1] == "tpu_custom_call" else "")):
            fused[target[1]] += times
    if fused:
        return "fused: " + ", ".join(f"{n} x {target}" for target, n in sorted(fused.items()))
    there = any("attention" in each.origin.lower() for each, _ in program.instructions())
    return "not fused" if there else "none"


class Buffer(NamedTuple):
    """An array that a program makes, how many of this shape, and where one is made."""

    shape: Shape
    count: int
    origin: str


def largest(program: Program, n: int) -> list[Buffer]:
    """Return the n largest arrays that a program makes in between; XLA gives some of them the same memory."""
    names, origins = collections.defaultdict(set), {}
    results = program.computations[_entry(program)][-1].operands
    for each, _ in program.instructions():
        if each.op in SILENT or each.op.endswith("-done") or each.name in results:
            continue
        for shape in each.shapes:
            if not shape.on_chip and shape.sizes:
                names[shape].add(each.name)
                origins.setdefault(shape, each.origin)
    shapes = sorted(names, key=lambda shape: -shape.bytes)[:n]
    return [Buffer(shape, len(names[shape]), origins[shape]) for shape in shapes]


def _entry(program: Program) -> str:
    return next(iter(program.times))
