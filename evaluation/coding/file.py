"""A code on disk: its bits, and beside them the facts by which a program knows whether it can decode them."""

import hashlib
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt32

from evaluation.coding.stack import WORD, Stack
from score_flow import __version__
from score_flow.errors import UserError
from score_flow.runs import files
from score_flow.runs.places import Place

MAGIC = b"sfcode1\n"
STATE = 96 // WORD  # words of a stack's state
Facts = dict[str, Any]
Words = UInt32[np.ndarray, "n"]


def packed(stacks: Sequence[Stack]) -> Words:
    """Return the bits of stacks: of each how many words it has, its state, its words."""
    words: list[int] = []
    for stack in stacks:
        state = [stack.state >> (WORD * i) & ((1 << WORD) - 1) for i in range(STATE)]
        words += [len(stack.words), *state, *stack.words]
    return np.array(words, np.uint32)


def unpacked(words: Words, seed: int, borrowed: Sequence[int]) -> list[Stack]:
    """Return the stacks that `packed` packed, one for each number of initial words; raises UserError for others."""
    words, stacks, at = words.tolist(), [], 0
    for lane, taken in enumerate(borrowed):
        first = at + 1 + STATE
        end = first + words[at] if at < len(words) else len(words) + 1
        if end > len(words):
            break
        state = sum(word << (WORD * i) for i, word in enumerate(words[at + 1 : first]))
        stacks.append(Stack(seed, lane, state, words[first:end], int(taken)))
        at = end
    if at != len(words) or len(stacks) < len(borrowed):
        raise UserError(f"job code: what is to be decoded is not the whole of a code of {len(borrowed)} lanes.")
    return stacks


def _beside(file: Place) -> Place:
    return file.with_name(f"{file.name}.json")


def write(file: Place, words: Words, facts: Facts) -> None:
    """Write a code, in words of little end first, and beside it, with its hash, its facts."""
    files.write_whole(file, MAGIC + words.astype("<u4").tobytes())
    files.write_json(_beside(file), facts | {"sha256": files.sha256_of(file)})


def read_facts(file: Place, key: str) -> Facts:
    """Read what stands beside a code; raises UserError without, or where the code is not the one that it is of."""
    file = files.regular_file(file, key)
    facts = files.json_at(_beside(file))
    if not facts or "sha256" not in facts:
        raise UserError(f"{key} is {file}: there is no {_beside(file).name}, which the job code writes beside it.")
    if files.sha256_of(file) != facts["sha256"]:
        raise UserError(f"{key} is {file}, which is damaged: its hash is not that in {_beside(file).name}.")
    return facts


def read(file: Place, seed: int, borrowed: Sequence[int]) -> list[Stack]:
    """Read the stacks of a code; raises UserError for another file."""
    content = file.read_bytes()
    if not content.startswith(MAGIC) or (len(content) - len(MAGIC)) % 4:
        raise UserError(f"{file} is no code of the job code.")
    return unpacked(np.frombuffer(content[len(MAGIC) :], "<u4"), seed, borrowed)


def program_facts(text: str) -> Facts:
    """Say what must be the same for a network to give the same bits: machine, libraries, program."""
    device, names = jax.local_devices()[0], ("jax", "jaxlib", "numpy")
    return {
        "device": f"{device.device_kind} ({device.platform})",
        "machine": " ".join([platform.machine(), f"{os.cpu_count()} CPUs", *platform.libc_ver()]),
        "versions": ", ".join([f"score_flow {__version__}", *(f"{name} {version(name)}" for name in names)]),
        "program": hashlib.sha256(text.encode()).hexdigest()[:16],
    }


def refuse_other(facts: Facts, ours: Facts, what: str) -> None:
    """Raise UserError, with both values, where a code was made otherwise than it would be decoded."""
    if other := [name for name, value in ours.items() if facts.get(name) != value]:
        other = [f"{name} was {facts.get(name)!r}, is {ours[name]!r}" for name in other]
        raise UserError(f"{what} was coded otherwise than it would be decoded: {'; '.join(other)}.")
