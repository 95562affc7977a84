"""The collectives of a compiled program, read off its HLO text: what they send and how often."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}

INSTRUCTION = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(")
CALLED = re.compile(r"(?:calls|body|to_apply|condition|branch_computations)=\{?(%[\w.\-]+(?:, %[\w.\-]+)*)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")


class Collective(NamedTuple):
    """One instruction: its arrays as (bytes an element, shape), whole as on all devices of a group; runs a program."""

    kind: str
    arrays: tuple[tuple[int, tuple[int, ...]], ...]
    times: int
    chain: str = ""  # common to the parts of one

    @property
    def n_bytes(self) -> int:
        """What a device sends in all runs, to leading order: an all-reduce is a reduce-scatter and an all-gather."""
        size = sum(width * math.prod(shape) for width, shape in self.arrays)
        return self.times * size * (2 if self.kind == "all-reduce" else 1)


def collectives(hlo: str) -> list[Collective]:
    """Every collective of a program, of its loops' bodies too, which run as often as XLA says that they do."""
    bodies = dict(_computations(hlo))
    times = dict.fromkeys(bodies, 0)

    def visit(name: str, runs: int) -> None:
        times[name] += runs
        for line in bodies[name]:
            for called in CALLED.findall(line):
                for each in called.split(", "):
                    visit(each, runs * _trips(line, bodies))

    visit("ENTRY", 1)
    found = {}
    for name in (name for name in bodies if times[name]):
        for i, each in enumerate(_of(bodies[name], times[name])):
            # XLA:TPU: what it fused of an all-reduce and a slice; the parts of one that it does between others.
            each = each._replace(kind="reduce-scatter") if "all-reduce-scatter" in name else each
            found.setdefault(each.chain or (name, i), each)
    return list(found.values())


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """How often an instruction runs what it calls: a loop as is known, or as its condition compares."""
    if " while(" not in line:
        return 1
    if known := TRIPS.search(line):
        return int(known[1])
    condition = bodies[re.search(r"condition=(%[\w.\-]+)", line)[1]]
    return max(int(n) for each in condition for n in re.findall(r"s32\[\]\S* constant\((\d+)\)", each))


def _computations(hlo: str) -> Iterator[tuple[str, list[str]]]:
    """(name, instructions) of each; the program's own is called ENTRY."""
    for head, body in re.findall(r"^((?:ENTRY )?%[\w.\-]+) \(.*\{\n((?:  .*\n)+)\}", hlo, re.MULTILINE):
        yield "ENTRY" if head.startswith("ENTRY") else head, body.splitlines()


def _of(lines: list[str], times: int) -> Iterator[Collective]:
    for line in lines:
        if found := INSTRUCTION.search(line):
            result, kind, start = found.groups()
            arrays = [(BYTES.get(dtype, 4), _sizes(sizes)) for dtype, sizes in ARRAY.findall(result)]
            half = len(arrays) // 2
            if start and kind in ("all-gather", "reduce-scatter"):  # (what goes in, what comes out): the larger
                arrays = arrays[half:] if kind == "all-gather" else arrays[:half]
            elif kind == "reduce-scatter":  # its result is a part of what goes in
                arrays = [(width * _group(line), shape) for width, shape in arrays]
            elif start and kind == "collective-permute":
                arrays = arrays[1:2]
            chain = re.search(r"(channel_id=\d+).*chain_id", line)
            yield Collective(kind, tuple(arrays), times, chain[1] if chain else "")


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _group(line: str) -> int:
    """How many devices a collective is over, in any of the three notations."""
    if listed := re.search(r"replica_groups=\{\{([0-9,]+)\}", line):
        return len(listed[1].split(","))
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", axes[2]))
    return int(re.search(r"replica_groups=\[\d+,(\d+)\]", line)[1])
