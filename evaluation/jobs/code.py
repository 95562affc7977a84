"""Images as bytes: those of a split coded by the chain of the job vlb, and decoded from the file, bit for bit."""

import functools
import hashlib
import json
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from evaluation.coding import file as code_file
from evaluation.coding.model import ChainModel
from evaluation.coding.stack import WORD, Stack
from evaluation.context import Context
from evaluation.fold import Fold, State, write_arrays
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.chains import NEEDS, READS, chain
from score_flow.config.options import EvalOptions
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.numerics import mean_and_error
from score_flow.process.bound import VariationalBound
from score_flow.runs.places import Place, place_of

NAME, KEY = "images.code", "config.eval.code_file"
SPARE = 4  # there is room for so many times the bits of plain levels,
BORROWED = 64  # and for so many bits a dimension of every lane


class Asked(NamedTuple):
    """The bound whose chain codes, and a code that is to be decoded, with its facts."""

    bound: VariationalBound
    file: Place | None
    facts: code_file.Facts


def open_code(run: Experiment, options: EvalOptions, workdir: Place) -> Opened:
    """Raise UserError without a chain, for what a code would not hold, and for a file that is none of such images."""
    if told := [name for name in ("num_classes", "low_res") if getattr(run.conditioning, name)]:
        raise UserError(f"job code: the network is told more than the image ({told[0]}), which a code does not hold.")
    if jax.process_count() > 1:
        raise UserError(f"job code: one process codes, image after image; there are {jax.process_count()}.")
    bound = chain(run, options)
    if not options.code_file:
        return Opened(Asked(bound, None, {}))
    file = place_of(options.code_file)
    facts = code_file.read_facts(file, KEY)
    ours = {"shape": list(run.image_shape), "levels": run.scaling.levels, "cells": options.code_cells}
    code_file.refuse_other(facts, ours, str(file))
    return Opened(Asked(bound, file, facts), {"code": facts["sha256"]})


def build(context: Context, asked: Asked) -> Fold:
    """Code images, and decode the file that was written; or decode config.eval.code_file into decoded.npz.

    A round is one image of every lane. The bits that draw an image's latents are those of the images before it in its
    lane; before the first one they are initial bits, which are in the file, say nothing of images, and count apart.
    """
    work = Work(context, asked)
    return Fold(context.key, work.left, work.init, work.step, work.code_figures if work.to_code else work.decoded)


class Work:
    """What the job does on one checkpoint; its state is the code so far, its images and figures of each."""

    def __init__(self, context: Context, asked: Asked):
        options, n = context.options, len(context.images)
        self.context, self.asked = context, asked
        self.n = asked.facts.get("n", n)
        self.lanes = asked.facts.get("lanes", min(options.code_lanes, n))
        self.seed = asked.facts.get("seed", context.run.seed)
        self.file = asked.file or context.directory / NAME
        self.model = ChainModel(context, asked.bound, self.lanes, options.code_cells)
        self.rounds = np.split(np.arange(self.n), np.arange(self.lanes, self.n, self.lanes))
        self.to_code = 0 if asked.file else len(self.rounds)
        plain = self.n * SPARE * math.log2(context.run.scaling.levels) + self.lanes * BORROWED
        self.room = math.ceil(plain * self.model.d / WORD) + 8 * self.lanes

    def left(self, state: State) -> int:
        return self.to_code + len(self.rounds) - int(state["done"])

    def init(self) -> State:
        images = np.zeros((self.n, *self.context.run.image_shape), np.uint8)
        empty = self._kept([Stack(self.seed, lane) for lane in range(self.lanes)])
        figures = {"bits": np.full(self.n, np.nan), "bound": np.full(self.n, np.nan)}
        return empty | figures | {"images": images, "done": np.zeros((), int), "program": np.zeros(32, np.uint8)}

    def step(self, state: State) -> State:
        done, program = int(state["done"]), self._program
        if done and (state["program"] != program).any():
            raise UserError(f"{self.context.directory} holds a code begun by another program or machine: remove it.")
        changed = self._code(state, done) if done < self.to_code else self._decode(state, done - self.to_code)
        return state | changed | {"done": np.asarray(done + 1), "program": program}

    def _code(self, state: State, done: int) -> State:
        numbers = self.rounds[done]
        every, images = self._stacks(state), self._levels(numbers)
        stacks = every[: len(numbers)]
        before = np.array([stack.bits for stack in stacks])
        bits, bound = state["bits"].copy(), state["bound"].copy()
        terms = self.model.chain.encode(stacks, images, self.model, done)
        bound[numbers] = terms + self.model.prior(images)[: len(stacks)]
        bits[numbers] = (np.array([stack.bits for stack in stacks]) - before) / self.model.d
        if done == self.to_code - 1:
            code_file.write(self.file, code_file.packed(every), self._facts(every))
        return self._kept(every) | {"bits": bits, "bound": bound}

    def _decode(self, state: State, done: int) -> State:
        number, images = len(self.rounds) - 1 - done, state["images"].copy()
        facts = code_file.read_facts(self.file, KEY)
        if not done:
            code_file.refuse_other(facts, self.model.facts, str(self.file))
        every = self._stacks(state) if done else code_file.read(self.file, self.seed, facts["borrowed"])
        numbers, batch = self.rounds[number], (self.lanes, self.model.d)
        levels = self.model.chain.decode(every[: len(numbers)], batch, self.model, number)
        images[numbers] = levels.reshape(-1, *images.shape[1:])
        if done == len(self.rounds) - 1 and not (
            all(stack.untouched() for stack in every) and _sha256(images) == facts["images"]
        ):
            raise UserError(f"{self.file} does not decode to its images: the network gave other bits than in coding.")
        return self._kept(every) | {"images": images}

    def code_figures(self, state: State) -> dict[str, Any]:
        """Return the figures of a code; code.npz has those of each image."""
        facts, about, n = code_file.read_facts(self.file, KEY), self._about(), self.n * self.model.d
        write_arrays(self.context.directory / "code.npz", bits=state["bits"], bound=state["bound"])
        size, initial = self.file.stat().st_size, WORD * sum(facts["borrowed"])
        (bound, bound_error), (above, above_error) = map(
            mean_and_error, (state["bound"], state["bits"] - state["bound"])
        )
        return {
            "bits_per_dim": (8 * size - initial) / n,
            "standard_error": mean_and_error(state["bits"])[1],
            "bound_bits_per_dim": bound,
            "bound_standard_error": bound_error,
            "above_bound": above,
            "above_bound_error": above_error,
            "file_bits_per_dim": 8 * size / n,
            "file_bytes": size,
            "initial_bits": initial,
            "images_decoded": self.n,
            **self.context.about(),
            **about,
        }

    def decoded(self, state: State) -> dict[str, Any]:
        """Say that a file is decoded; decoded.npz has its images and their numbers in their split."""
        facts = code_file.read_facts(self.file, KEY)
        write_arrays(self.context.directory / "decoded.npz", image=state["images"], index=np.array(facts["numbers"]))
        return {"images_decoded": self.n, "split": facts["split"], **self._about()}

    def _about(self) -> dict[str, Any]:
        bound, options = self.asked.bound, self.context.options
        return {
            "lanes": self.lanes, "cells_per_std": options.code_cells, "n_steps": len(bound.times),
            "variance": bound.variance, "decoder": bound.decoder, "clipped": options.vlb_clip,
        }  # fmt: skip

    def _facts(self, stacks: list[Stack]) -> code_file.Facts:
        """Say of a code what its decoder must know, and what its images are."""
        run, numbers = self.context.run, self.context.images
        images = self.context.source.read(numbers)["image"]
        return self.model.facts | {
            "n": self.n, "lanes": self.lanes, "cells": self.context.options.code_cells, "seed": self.seed,
            "borrowed": [stack.borrowed for stack in stacks], "shape": list(run.image_shape),
            "levels": run.scaling.levels, "images": _sha256(images), "split": self.context.source.name,
            "numbers": numbers.tolist(),
        }  # fmt: skip

    def _levels(self, numbers: np.ndarray) -> UInt8[np.ndarray, "lanes d"]:
        """Read images by their place among those that are coded, and the first of all for lanes that have none."""
        wanted = np.zeros(self.lanes, int)
        wanted[: len(numbers)] = numbers
        return self.context.source.read(self.context.images[wanted])["image"].reshape(self.lanes, -1)

    def _stacks(self, state: State) -> list[Stack]:
        return code_file.unpacked(state["code"][: state["length"]], self.seed, state["borrowed"].tolist())

    def _kept(self, stacks: list[Stack]) -> State:
        words = code_file.packed(stacks)
        if len(words) > self.room:
            raise UserError(f"job code: the code is {SPARE} times as long as the images: this is no model of them.")
        code = np.zeros(self.room, np.uint32)
        code[: len(words)] = words
        return {"code": code, "length": np.asarray(len(words)), "borrowed": np.array([s.borrowed for s in stacks])}

    @functools.cached_property
    def _program(self) -> UInt8[np.ndarray, "32"]:
        said = json.dumps(self.model.facts, sort_keys=True).encode()
        return np.frombuffer(hashlib.sha256(said).digest(), np.uint8)


def _sha256(images: UInt8[np.ndarray, "n h w c"]) -> str:
    return hashlib.sha256(np.ascontiguousarray(images).tobytes()).hexdigest()


job = Job(build, NEEDS, (*READS, "code_lanes", "code_cells", "code_file"), open_code)
