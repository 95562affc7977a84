"""What a model can be asked for, in pictures: classes, guidance, and control of test images."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from evaluation.context import Context, Guidance
from evaluation.drawing import drawer, refuse_failed
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job
from evaluation.report import page
from evaluation.report.pictures import Pixels, beside, save_grid
from sampling.base import Sampler
from sampling.control.base import Control
from score_flow.config import registries
from score_flow.config.components import Component, resolve
from score_flow.errors import UserError
from score_flow.runs.files import write_whole
from score_flow.runs.places import Place
from score_flow.runs.processes import barrier, is_main
from score_flow.runs.sharding import multiple

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 5.0)
STRENGTHS = (0.3, 0.5, 0.7)  # times from which SDEdit starts
ROWS, SAMPLES = 8, 4


class Picture(NamedTuple):
    """A sheet with so many columns."""

    name: str
    caption: str
    draw: Callable[[], tuple[Pixels, int]]


def build(context: Context, opened: None) -> Fold:
    """Draw a picture a round, each as gallery/<name>.png and .npz; the report shows them."""
    gallery = Gallery(context)
    pictures, levels = gallery.pictures(), context.run.scaling.levels

    def step(state):
        number = int((state["columns"] == 0).argmax())
        picture = pictures[number]
        images, columns = picture.draw()
        write_arrays(context.directory / f"{picture.name}.npz", image=images)
        if is_main():
            save_grid(context.directory / f"{picture.name}.png", images, levels, columns=columns)
        columns_by_round = state["columns"].copy()
        columns_by_round[number] = columns
        return {"columns": columns_by_round}

    def finish(state):
        columns = state["columns"].tolist()
        rows = [{"name": p.name, "caption": p.caption, "columns": c} for p, c in zip(pictures, columns, strict=True)]
        return {"pictures": rows} | context.labels

    def left(state):
        return int((state["columns"] == 0).sum())

    return Fold(context.key, left, lambda: {"columns": np.zeros(len(pictures), np.int64)}, step, finish)


class Gallery:
    """The pictures that a model can give."""

    def __init__(self, context: Context):
        self._context, self._run = context, context.run
        self._guide = context.guide.replace(labels=None)  # every class in its column
        self._classes = context.run.conditioning.num_classes
        self._guides = {scale: found for scale in SCALES if (found := self._at(scale))}

    def pictures(self) -> list[Picture]:
        """List what fits: guidance needs hidden labels or a worse model, colours three channels."""
        found = []
        if self._classes:
            found.append(Picture("classes", "Samples of each class, a column a class", self._by_class))
        if self._classes and len(self._guides) > 1:
            scales = ", ".join(f"{scale:g}" for scale in self._guides)
            caption = f"Guidance scales {scales}, a row each, from the same noise"
            found.append(Picture("guidance", caption, self._guidance))
        means = not self._run.model.spans  # of x0, to correct: in one call there is none
        if means:
            found.append(Picture("inpainting", self._caption("the known upper half"), self._inpainting))
        if self._run.model.consistency:
            return found  # the rest is of a velocity
        sdedit = f"SDEdit: input, then started from it at t = {STRENGTHS}, a column each"
        found.append(Picture("sdedit", sdedit, self._sdedit))
        if not means:
            return found
        height, width, channels = self._run.image_shape
        if height == width and height % 2 == 0:
            caption = self._caption("its means over 2 x 2 pixels")
            found.append(Picture("super_resolution", caption, self._super_resolution))
        if channels == 3:
            found.append(Picture("colourisation", self._caption("its grey values"), self._colourisation))
        return found

    def _at(self, scale: float) -> Guidance | None:
        """Return the guidance at a scale, None where the model has none."""
        try:
            return self._guide.at(scale)
        except UserError:
            return None

    @staticmethod
    def _caption(known: str) -> str:
        return f"Test image, {known}, and {SAMPLES} samples that agree with it; a row an image"

    def _draw(self, n: int, **changed: Any) -> Pixels:
        """Draw samples 0..n-1, of the context's sampler, guidance and no control, but for what is changed."""
        sampler: Sampler = changed.get("sampler", self._context.sampler)
        indices = np.arange(multiple(self._run.mesh, n))
        draw = drawer(self._run, sampler)
        guidance, control = changed.get("guide", self._guide), changed.get("control")
        arrays, _, ok = draw(self._context.params, guidance, control, indices)
        refuse_failed(indices[:n], ok[:n])
        return arrays["image"][:n]

    def _by_class(self) -> tuple[Pixels, int]:
        return self._draw(ROWS * self._classes), self._classes

    def _guidance(self) -> tuple[Pixels, int]:
        rows = [self._draw(self._classes, guide=guide) for guide in self._guides.values()]
        return np.concatenate(rows), self._classes

    def _inpainting(self) -> tuple[Pixels, int]:
        height, width = self._run.image_shape[:2]
        white = np.zeros((height, width), np.uint8)
        white[: height // 2] = 255
        mask = self._context.directory / "mask.png"
        if is_main():
            write_whole(mask, lambda stream: Image.fromarray(white).save(stream, "PNG"))
        barrier("mask")
        return self._measured("inpaint", mask=str(mask))

    def _super_resolution(self) -> tuple[Pixels, int]:
        return self._measured("super_resolution", low_res=self._run.image_shape[0] // 2)

    def _colourisation(self) -> tuple[Pixels, int]:
        return self._measured("colourise")

    def _measured(self, name: str, **fields: Any) -> tuple[Pixels, int]:
        control, n = self._control(name, **fields), len(self._inputs())
        return beside(self._shown(control), self._draw(SAMPLES * n, control=control))

    def _sdedit(self) -> tuple[Pixels, int]:
        control, n = self._control("sdedit"), len(self._inputs())
        drawn = [
            self._draw(n, control=control, sampler=resolve(registries.SAMPLERS, section, "config.sampling"))
            for section in (Component("heun", {"t_max": t}) for t in STRENGTHS)
        ]
        return beside(self._shown(control)[:1], np.concatenate(drawn))

    def _shown(self, control: Control) -> list[Pixels]:
        return [np.asarray(self._run.pixels(x)) for x in control.pictures]

    def _inputs(self) -> Pixels:
        """Read test images: one of each class where samples go through the classes in turn, else the first few."""
        source = self._run.test_source
        first = source.read(np.arange(min(len(source), 1000)))
        if not self._classes:
            return first["image"][:ROWS]
        return first["image"][[int(np.argmax(first["label"] == label)) for label in range(self._classes)]]

    def _control(self, name: str, **fields: Any) -> Control:
        file: Place = self._context.directory / "inputs.npz"
        write_arrays(file, image=self._inputs())
        barrier("inputs")
        return resolve(
            registries.CONTROLS, Component(name, {"input": str(file), **fields}), "config.control",
            image_shape=self._run.image_shape, scaling=self._run.scaling, dequantised=self._run.dequantised,
            data_std=self._run.model.preconditioning.data_std,
        )  # fmt: skip


def section(record: page.Record) -> str:
    """Show every picture, two side by side."""
    sheets = []
    for picture in record.results["gallery"].get("pictures", []):
        images = record.arrays("gallery", f"{picture['name']}.npz").get("image", record.real[:0])
        if len(images):
            caption, columns = picture["caption"], picture["columns"]
            sheets.append(page.sheet(images, record.levels, caption, columns=columns))
    return page.section("Gallery", page.two_columns(*sheets))


job = Job(build, frozenset({"denoiser", "sampler", "pixels", "levels", "test images"}), section=section, place=40)
