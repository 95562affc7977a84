"""A run from Python, sf.open(workdir): what the command line does with it, as functions of arrays.

Images are pixel levels, uint8 (n, h, w, c), as data sets hold them and samples are shown. Nothing is written but by
open_published(workdir=...), and no lock is held.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from evaluation.context import Guidance
from evaluation.drawing import refuse_failed
from evaluation.labels import Labels as Chosen
from evaluation.opened import given, programs
from evaluation.opened.given import AnyArray, Labels, Levels
from sampling import encoding
from sampling.base import Sampler, Stream, example_keys
from sampling.control import inpaint
from sampling.control.base import Control, Method
from score_flow.config.options import Config
from score_flow.data.base import Source
from score_flow.errors import UserError
from score_flow.experiment import Experiment
from score_flow.model import Denoiser, Model
from score_flow.runs.places import Place
from score_flow.types import Images, Params

Settings = Mapping[str, Any]  # of a section of the config: {"rtol": 1e-3}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained model with its weights and all that its config says; `open` and `open_published` make it.

    Its methods raise UserError, in one line, for what does not fit the model, and NonFinite where a solver does not
    arrive. What is random depends on the seed and on the number of an image alone, not on batches or devices. A model
    with classes takes labels, one for all images or one each; num_classes stands for none where it was trained so.

    Attributes:
        config: the settings.
        experiment: the objects that they say: model, data, scaling of pixels, devices.
        params: the weights, on every device.
        step: of the checkpoint that they are of.
        weights: which of it, in words: "EMA 0.999", "raw".
        workdir: of the run; an empty path where a published file was imported into none.
    """

    config: Config = dataclasses.field(repr=False)
    experiment: Experiment = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    step: int
    weights: str
    workdir: Place = Path()

    @property
    def model(self) -> Model:
        """The network, the path, and what the network's output means."""
        return self.experiment.model

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(h, w, c) of x: of an image, or of the latents that a latent model makes."""
        return self.experiment.image_shape

    @property
    def train_data(self) -> Source:
        """The training images, opened when first asked for: len(data), data.read(np.arange(8))["image"]."""
        return self.experiment.train_source

    @property
    def test_data(self) -> Source:
        """The test images, as `train_data`."""
        return self.experiment.test_source

    # ---- samples

    def sample(
        self,
        n: int,
        *,
        labels: Labels | None = None,
        guidance: float | Settings | None = None,
        sampler: Sampler | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> Levels:
        """Draw n samples, those of --mode=sample for the same seed and settings.

        labels: taken in turn; without any, all classes of the model in turn. guidance: its scale, or settings of
        config.guidance. sampler: such as sf.samplers.heun(n_steps=18). What is not given is as configured. Latents are
        decoded by config.eval.autoencoder: sf.open(workdir, eval={"autoencoder": FOLDER}).
        """
        guide = self._guided(guidance)
        own = None if labels is None else self._labels(labels, None, guide)
        n, guide = given.count_of(n), _with_labels(guide, own)
        return self._drawn(n, guide, None, sampler=sampler, seed=seed, size=batch_size)

    def inpaint(
        self,
        images: AnyArray,
        mask: AnyArray,
        n: int = 1,
        *,
        labels: Labels | None = None,
        guidance: float | Settings | None = None,
        sampler: Sampler | None = None,
        method: Method = "pseudo_inverse",
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> UInt8[np.ndarray, "b n h w c"]:
        """Draw n samples for each of b images, of which the pixels are known where the mask is True (--mode=control).

        images: levels (b, h, w, c). mask: bool (h, w). method: pseudo_inverse, or replacement for samplers that are
        chains. The rest as of `sample`.
        """
        images, mask, run = self._levels("inpaint", images), np.asarray(mask), self.experiment
        if mask.dtype != bool or mask.shape != self.image_shape[:2] or not mask.any():
            raise UserError(
                f"mask is {mask.dtype} {mask.shape}; give bool {self.image_shape[:2]}, True where the image is known."
            )
        control = inpaint.of_pixels(
            images, mask[..., None], run.scaling, dequantised=run.dequantised, method=method,
            data_std=self.model.preconditioning.data_std,
        )  # fmt: skip
        guide, b = self._guided(guidance), len(images)
        guide = _with_labels(guide, self._labels(labels, b, guide))
        drawn = self._drawn(given.count_of(n) * b, guide, control, sampler=sampler, seed=seed, size=batch_size)
        return drawn.reshape(n, b, *drawn.shape[1:]).swapaxes(0, 1)  # sample i is of image i mod b

    def denoiser(self, *, labels: Labels | None = None, guidance: float | Settings | None = None) -> Denoiser:
        """Make what samplers take, the posterior means with guidance: denoiser.x0(x, t), score(x, t), velocity(x, t).

        labels: one for each example of the batches that it will see.
        """
        guide = self._guided(guidance)
        label = self._labels(labels, None, guide)
        return guide(self.model.bind(self.params, None if label is None else {"label": jnp.asarray(label)}))

    # ---- the flow of the model, without guidance

    def bits_per_dim(
        self,
        images: AnyArray,
        *,
        labels: Labels | None = None,
        indices: AnyArray | None = None,
        seed: int | None = None,
        solver: Settings | None = None,
    ) -> Float[np.ndarray, "n"]:
        """Compute -log2 p of the levels (n, h, w, c) of each image, a dimension, as the job likelihood does.

        indices: the number of each image, on which its noise depends; else 0, 1, ... solver: settings of
        config.eval.solver, beside those configured.
        """
        images = self._levels("bits_per_dim", images)
        batch = {"image": images} | self._label(labels, len(images))
        numbers = np.arange(len(images)) if indices is None else np.asarray(indices)
        if numbers.shape != (len(images),) or numbers.dtype.kind not in "iu":
            raise UserError(f"indices are {numbers.dtype} {numbers.shape}; give an integer for each image.")
        figures = functools.partial(self._programs.likelihood(_frozen(solver), self._seed(seed)), self.params)
        found, ok = self._by_batches(figures, batch, numbers.astype(np.uint32))
        given.refuse_unsolved("bits_per_dim", ok)
        return found.astype(np.float64)

    def encode(
        self, images: AnyArray, *, labels: Labels | None = None, solver: Settings | None = None
    ) -> Float[np.ndarray, "n h w c"]:
        """Carry images, levels (n, h, w, c), along the flow to their encodings z, about N(0, sigma(t_max)^2 I).

        Each level stands for the middle of its cell: `decode` gives the same levels again. solver: as of bits_per_dim.
        """
        images = self._levels("encode", images)
        batch = {"image": images} | self._label(labels, len(images))
        z, ok = self._by_batches(functools.partial(self._programs.flow(_frozen(solver)).encode, self.params), batch)
        given.refuse_unsolved("encode", ok)
        return z

    def decode(
        self, z: AnyArray, *, labels: Labels | None = None, solver: Settings | None = None
    ) -> Levels:
        """Carry encodings (n, h, w, c) back to images, as levels; undoes `encode` under the same labels."""
        z, decode = given.floats_of("z", z, self.image_shape), self._programs.flow(_frozen(solver)).decode
        batch = {"z": z.astype(np.float32)} | self._label(labels, len(z))
        levels, ok = self._by_batches(functools.partial(decode, self.params, self.experiment.pixels), batch)
        given.refuse_unsolved("decode", ok)
        return levels

    def interpolate(
        self,
        first: AnyArray,
        second: AnyArray,
        n: int = 8,
        *,
        labels: tuple[Labels | None, Labels | None] = (None, None),
        solver: Settings | None = None,
    ) -> UInt8[np.ndarray, "*b n h w c"]:
        """Decode n encodings, along the arc between those of two images, as the job interpolation does.

        first, second: levels of an image each (h, w, c), or of b (b, h, w, c). labels: those of the first and of the
        second; what lies between is decoded under the first's.
        """
        first, second, n = np.asarray(first), np.asarray(second), given.count_of(n)
        if first.shape != second.shape:
            raise UserError(f"first is {first.shape} and second {second.shape}; give as many of one as of the other.")
        if first.ndim == 3:
            return self.interpolate(first[None], second[None], n, labels=labels, solver=solver)[0]
        z0, z1 = (self.encode(x, labels=own, solver=solver) for x, own in zip((first, second), labels, strict=True))
        shares = np.repeat(np.linspace(0, 1, n + 2)[1:-1], len(first))
        between = encoding.slerp(jnp.tile(z0, (n, 1, 1, 1)), jnp.tile(z1, (n, 1, 1, 1)), jnp.asarray(shares))
        own = self._label(labels[0], len(first)).get("label")
        decoded = self.decode(np.asarray(between), labels=None if own is None else np.tile(own, n), solver=solver)
        return decoded.reshape(n, len(first), *decoded.shape[1:]).swapaxes(0, 1)

    def score(self, x: AnyArray, t: float | AnyArray, *, labels: Labels | None = None) -> Images:
        """Compute grad log p_t(x) of x (n, h, w, c), in the model's range, at one time or one each."""
        x = given.floats_of("x", x, self.image_shape)
        label = self._label(labels, len(x))
        return self._programs.score(self.params, jnp.asarray(x), jnp.asarray(t, x.dtype), label or None)

    # ---- what a caller gives, and what is compiled of it

    def _seed(self, seed: int | None) -> int:
        return self.config.seed if seed is None else seed

    def _levels(self, what: str, images: Any) -> Levels:
        if self.experiment.latent:
            raise UserError(f"{what} takes pixels, and this is a model of latents.")
        if self.experiment.real:
            raise UserError(f"{what} takes pixel levels, and this is a model of real numbers.")
        return given.levels_of(images, self.image_shape, self.experiment.scaling.levels)

    def _labels(self, labels: Labels | None, n: int | None, guide: Guidance) -> np.ndarray | None:
        null = self.config.training.label_dropout > 0
        return given.labels_of(labels, n, classes=guide.conditioning.num_classes, null=null)

    def _label(self, labels: Labels | None, n: int) -> dict[str, np.ndarray]:
        """What the model without guidance is told."""
        null, own = self.config.training.label_dropout > 0, self.experiment.conditioning
        label = given.labels_of(labels, n, classes=own.num_classes, null=null)
        return {} if label is None else {"label": label}

    def _by_batches(self, compute: Callable, *arrays: Any, size: int | None = None) -> Any:
        size = self.config.eval.batch_size if size is None else given.count_of(size, "batch_size")
        return given.by_batches(self.experiment.mesh, size, compute, *arrays)

    def _drawn(
        self,
        n: int,
        guide: Guidance,
        control: Control | None,
        *,
        sampler: Sampler | None,
        seed: int | None,
        size: int | None,
    ) -> Levels:
        draw, pixels = self._programs.draw(given.sampler_of(sampler)), self.experiment.pixels

        def drawn(numbers):
            keys = example_keys(self._seed(seed), numbers, Stream.SAMPLES)
            return draw(self.params, guide, control, pixels, keys, numbers)

        levels, ok = self._by_batches(drawn, np.arange(n, dtype=np.uint32), size=size)
        refuse_failed(np.arange(n), ok)
        return levels

    def _guided(self, guidance: float | Settings | None) -> Guidance:
        settings = guidance if isinstance(guidance, Mapping) else {} if guidance is None else {"scale": guidance}
        return self._programs.guide(_frozen(settings))

    @functools.cached_property
    def _programs(self) -> programs.Programs:
        return programs.Programs(self.experiment, self.config, self.workdir)


def _frozen(settings: Settings | None) -> tuple:
    """Settings that a cache can know again."""
    return tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in sorted((settings or {}).items()))


def _with_labels(guide: Guidance, label: np.ndarray | None) -> Guidance:
    """The guidance whose samples have some labels in turn, whatever config.eval says."""
    return guide if label is None else guide.replace(labels=Chosen(jnp.asarray(label)))
