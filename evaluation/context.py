"""What an evaluation job is given: a trained model with its parameters, data and settings."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sampling.base import Sampler
from sampling.guidance import Guide, guide
from score_flow.build import Experiment
from score_flow.data.base import Source
from score_flow.data.pipeline import gather, rounds
from score_flow.model import NetworkDenoiser
from score_flow.sharding import batch_sharding
from score_flow.types import Batch, Params


@dataclasses.dataclass(frozen=True)
class Context:
    """One checkpoint under evaluation; `options` is config.eval, `directory` the job's own folder.

    `guide` makes the denoiser that samplers see of the model's, whose likelihood is another matter.
    `judged`: whether results are compared with the data set, or samples are all that is wanted.
    """

    run: Experiment
    params: Params
    step: int
    sampler: Sampler
    guide: Guide
    options: ConfigDict
    directory: Path
    judged: bool = True

    @property
    def source(self) -> Source:
        """The split that losses and likelihoods are computed on."""
        return self.run.test_source if self.options.bpd_dataset == "test" else self.run.train_source

    @property
    def batch_size(self) -> int:
        """The global batch, rounded up to a multiple of the devices: it changes no result."""
        return -(-self.options.batch_size // self.run.mesh.size) * self.run.mesh.size

    def rounds_of(self, n: int) -> int:
        """How many batches n examples take."""
        return -(-n // self.batch_size)

    def examples(self, round_number: int) -> tuple[Batch, np.ndarray, np.ndarray]:
        """(batch on the devices, global indices, which of them count) of a round over the source."""
        indices, mask = rounds(len(self.source), self.batch_size, round_number)
        return gather(self.source, indices, batch_sharding(self.run.mesh)), indices, mask

    def denoiser(self, params: Params, batch: Batch) -> NetworkDenoiser:
        """The denoiser for the examples of a batch; call it inside jit."""
        return self.run.model.bind(params, self.run.condition(batch))

    def compile(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """f(params, *arrays) under one jit, the parameters bound."""
        compiled = jax.jit(f)
        return lambda *arrays: compiled(self.params, *arrays)


def build_guide(run: Experiment, config: ConfigDict) -> Guide:
    """What config.guidance asks of a run's model; raises UserError where the model cannot give it."""
    # Trained without ever hiding a label, a network has a null class in name only.
    null = run.conditioning.num_classes if config.training.label_dropout > 0 else 0
    channels, range_of_data = run.image_shape[-1], (run.scaling.low, run.scaling.high)
    return guide(null, channels, *range_of_data, **config.guidance)
