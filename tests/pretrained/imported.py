"""Golden checkpoints through the public importer, as models and parameters of a dtype."""

import dataclasses
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from evaluation.modes.importing import open_published
from score_flow.build import build_conditioning, build_model
from score_flow.config.loading import load, with_settings
from score_flow.pretrained.base import as_dtype


class Compiled(nn.Module):
    """A network compiled once, for every model that it is part of; `variant` tells patched programs apart."""

    inner: nn.Module
    variant: str = ""

    @property
    def num_classes(self):
        return self.inner.num_classes

    def apply(self, variables, x, time, condition=None, **_):
        return _apply(self.inner, self.variant, variables, x, time, condition)


@partial(jax.jit, static_argnums=(0, 1))
def _apply(network, variant, variables, x, time, condition):
    return network.apply(variables, x, time, condition)


class Imported:
    """A published file: models of its settings, or of changed ones, and its weights."""

    def __init__(self, file, reference, dtype, variant="", **overrides):
        self.published, self.reference, self.dtype = open_published(str(file)), reference, dtype
        self.variant, self.overrides = variant, overrides

    def model(self, **changes):
        """The model of the settings with some of them changed: section={key: value}."""
        settings = {k: v | changes.get(k, {}) if isinstance(v, dict) else v for k, v in self.reference.items()}
        known = self.published.source.translate(settings) | self.published.checkpoint.implied
        config = with_settings(load("configs/base.py", [], known), {"network.dtype": self.dtype} | self.overrides)
        self.image_shape = tuple(config.data.image_shape)
        model = build_model(config, self.image_shape[-1], build_conditioning(config, config.data.num_classes))
        return dataclasses.replace(model, network=Compiled(model.network, self.variant))

    def layout(self, model):
        return self.published.source.layout(bare_of(model), self.image_shape)

    def params(self, model, kind):
        bare = bare_of(model)
        shapes = shapes_of(bare, self.image_shape)
        params = as_dtype(self.published.params(bare, self.image_shape, shapes, kind), self.dtype)
        return jax.tree.map(jnp.asarray, params)


@cache
def shapes_of(model, image_shape):
    """Shapes of the parameters; nothing is computed."""
    condition = {"label": jnp.zeros(1, jnp.int32)} if model.network.num_classes else None
    return jax.eval_shape(lambda: model.init(jax.random.key(0), (1, *image_shape), condition))


def bare_of(model):
    """The model without the wrapping of its network."""
    return dataclasses.replace(model, network=model.network.inner)


def nhwc(x, dtype):
    return jnp.asarray(np.moveaxis(x, 1, -1), dtype)


def relative_error(ours, reference):
    """||ours - reference|| / ||reference||, reference (b, c, h, w)."""
    ours = np.moveaxis(np.asarray(ours, np.float64), -1, 1)
    return np.linalg.norm(ours - reference) / np.linalg.norm(reference)


def allowed(name, arrays, double):
    """1e-9 in float64; in float32 1e-5, or three times what float32 cost the source (its EMA as its raw weights)."""
    if name == double:
        return 1e-9
    if double not in arrays:
        return 1e-5
    reference = np.asarray(arrays[double], np.float64)
    return max(1e-5, 3 * np.linalg.norm(arrays[name.removesuffix("_ema")] - reference) / np.linalg.norm(reference))
