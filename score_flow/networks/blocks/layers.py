"""What the networks share: time features, embeddings, normalisation, attention, resampling (no plug-in: no `build`)."""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.config.hints import Dtype, Given
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.networks.blocks import devices
from score_flow.types import Condition

# Of the fields that all networks have.
ClassesGiven = Annotated[int, Given("the number of the data's classes, 0 without config.model.class_conditional")]
AugmentGiven = Annotated[int, Given("the number of labels of config.data.augment, 0 without it")]
SpanGiven = Annotated[bool, Given("whether the network is told of two times: config.model.span")]
GuidanceGiven = Annotated[bool, Given("whether the network is told of a guidance scale: config.model.guidance")]
TapGiven = Annotated[int, Given("config.training.alignment_block, 0 without config.training.alignment")]
ChannelsGiven = Annotated[int | None, Given("the images' channels, twice as many with config.model.learn_sigma")]
PrecisionGiven = Annotated[Dtype, Given("config.model.precision")]
Dropout = Annotated[float, Limits(least=0, below=1)]

MAX_PERIOD = 10_000.0
NONLINEARITIES = {
    "swish": nn.swish,
    "relu": nn.relu,
    "elu": nn.elu,
    "lrelu": partial(nn.leaky_relu, negative_slope=0.2),
}
Nonlinearity = Annotated[str, Limits(among=tuple(NONLINEARITIES))]


def at_least_float32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x in float32, or as it is if in float64: the dtype of outputs, norms and time features."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _product(x: Float[Array, "*b c"], w: Float[Array, "c d"], dimensions: tuple, **options) -> Float[Array, "*b d"]:
    """lax.dot_general of a Dense layer; on a CPU a product of two matrices.

    XLA's CPU compiler sums a gradient over several axes of x only after it has copied them. The kernel that has more
    rows than columns is turned around there, so that its gradient is summed in the order that Eigen is faster in.
    """
    if devices.platform() != "cpu":
        return jax.lax.dot_general(x, w, dimensions, **options)
    if w.shape[0] > w.shape[1]:
        w = jax.lax.optimization_barrier(w.T).T
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return jax.lax.dot_general(rows, w, (((1,), (0,)), ((), ())), **options).reshape(*x.shape[:-1], -1)


Dense = partial(nn.Dense, dot_general=_product)


def scaled_uniform(scale: float = 1.0) -> Callable[..., Array]:
    """Initialiser U(-a, a) of variance scale / mean(fan_in, fan_out); scale 0 means 1e-10 (arXiv:2006.11239)."""
    return nn.initializers.variance_scaling(max(scale, 1e-10), "fan_avg", "uniform")


def ddpm_features(time: Float[Array, "b"], n: int) -> Float[Array, "b n"]:
    """[sin(w time), cos(w time)], w_i = 10000^(-i / (h - 1)), h = n // 2: order and divisor of DDPM and score_sde."""
    half = n // 2
    angles = _angles(time, half, half - 1)
    return _pad(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1), n)


def transformer_features(time: Float[Array, "b"], n: int) -> Float[Array, "b n"]:
    """[cos(w time), sin(w time)], w_i = 10000^(-i / h), h = n // 2: order and divisor of improved-diffusion and SiT."""
    half = n // 2
    angles = _angles(time, half, half)
    return _pad(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1), n)


def _angles(time: Float[Array, "b"], half: int, divisor: int) -> Float[Array, "b half"]:
    # At least float32 whatever the compute dtype: bfloat16 cannot tell 998 from 1000.
    time = at_least_float32(time)
    frequencies = MAX_PERIOD ** (-jnp.arange(half, dtype=time.dtype) / max(divisor, 1))
    return time[:, None] * frequencies


def _pad(features: Float[Array, "b m"], n: int) -> Float[Array, "b n"]:
    return jnp.pad(features, ((0, 0), (0, n - features.shape[-1])))  # one zero when n is odd


class FourierFeatures(nn.Module):
    """[sin(2 pi w time), cos(2 pi w time)], n fixed frequencies w ~ N(0, scale^2) (arXiv:2006.10739)."""

    n: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, time: Float[Array, "b"]) -> Float[Array, "b m"]:
        # A parameter, so that checkpoints carry the draw; never trained.
        w = jax.lax.stop_gradient(self.param("w", nn.initializers.normal(self.scale), (self.n,)))
        angles = 2 * jnp.pi * at_least_float32(time)[:, None] * w
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


TIME_FEATURES = ("positional", "fourier")


class TimeFeatures(nn.Module):
    """The time features that a score network may choose: n of "positional" (DDPM's) or 2 n of "fourier"."""

    kind: str
    n: int
    fourier_scale: float = 16.0

    @nn.compact
    def __call__(self, time: Float[Array, "b"]) -> Float[Array, "b m"]:
        if self.kind == "fourier":
            return FourierFeatures(self.n, self.fourier_scale, name="fourier")(time)
        return ddpm_features(time, self.n)


class Embedding(nn.Module):
    """One vector of time and label: W2 act(W1 features) + table[label], with a last row for the null class.

    `condition["label"]` is int32 (b,) in [0, num_classes]; it is unused when num_classes is 0. With augment_dim labels
    of augmentation it has W condition["augment"] too, W without a bias: nothing where they are missing, as in samples.
    With span it has W4 act(W3 features of condition["span"]), the time from t back to another, 0 where it is missing;
    with guidance the same of condition["guidance"], (b, 3), features of each of its numbers. W4 starts at 0, as if it
    were not there. label_first: the label's row joins the features instead, as in EDM's networks.
    Raises UserError when the network has classes and the label is missing.
    """

    width: int
    num_classes: int = 0
    kernel_init: Callable[..., Array] = scaled_uniform()
    dtype: str = "float32"
    nonlinearity: str = "swish"
    label_std: float = 0.02
    augment_dim: int = 0
    span: bool = False
    guidance: bool = False
    label_first: bool = False

    @nn.compact
    def __call__(self, features: Float[Array, "b n"], condition: Condition = None) -> Float[Array, "b width"]:
        if self.label_first and self.num_classes:
            row = label_embedding(condition, self.num_classes, features.shape[-1], self.dtype, self.label_std)
            features = features + row
        dense = partial(nn.Dense, self.width, kernel_init=self.kernel_init, dtype=self.dtype)
        embedding = dense(name="time_1")(NONLINEARITIES[self.nonlinearity](dense(name="time_0")(features)))
        if self.augment_dim:
            labels = (condition or {}).get("augment", jnp.zeros((len(features), self.augment_dim)))
            embedding += dense(name="augment", use_bias=False)(labels)
        for name in [name for name in ("span", "guidance") if getattr(self, name)]:
            numbers = (condition or {}).get(name, jnp.zeros((len(features), 3 if name == "guidance" else 1)))
            columns = numbers.reshape(len(features), -1).T
            told = jnp.concatenate([transformer_features(column, features.shape[-1]) for column in columns], axis=-1)
            hidden = NONLINEARITIES[self.nonlinearity](dense(name=f"{name}_0")(told))
            embedding += dense(name=f"{name}_1", kernel_init=nn.initializers.zeros)(hidden)
        if self.label_first or not self.num_classes:
            return embedding
        return embedding + label_embedding(condition, self.num_classes, self.width, self.dtype, self.label_std)


def label_embedding(
    condition: Condition, num_classes: int, width: int, dtype: str, std: float = 0.02
) -> Float[Array, "b width"]:
    """Return a row of a table for each condition["label"], the last for the null class; entries start as N(0, std^2).

    Call it in a compact method: the table is the submodule "label". Raises UserError when the label is missing.
    """
    if condition is None or "label" not in condition:
        got = ", ".join(condition or ()) or "nothing"
        raise UserError(f"A network with num_classes={num_classes} needs condition['label'], got {got}.")
    init = nn.initializers.normal(std)
    return nn.Embed(num_classes + 1, width, embedding_init=init, dtype=dtype, name="label")(condition["label"])


class GroupNorm(nn.Module):
    """Normalisation of groups of channels over an image, in float32 (Wu and He 2018, arXiv:1803.08494)."""

    groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        y = at_least_float32(x)
        mean, square = _moments(y, self.groups)
        variance = jnp.maximum(square - jnp.square(mean), 0.0)
        # In one array: their gradients are one sum over the batch.
        scale, bias = jnp.broadcast_to(jnp.stack([scale, bias])[:, None], (2, len(x), channels))
        gain = scale * jax.lax.rsqrt(variance + self.epsilon)
        return (y * gain[:, None, None] + (bias - mean * gain)[:, None, None]).astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _moments(y: Float[Array, "b h w c"], groups: int) -> tuple[Float[Array, "b c"], Float[Array, "b c"]]:
    """Return the means of y and of its squares over an image and a group of channels, for each channel of the group.

    For each channel first, then over its group: the long reduction keeps channels contiguous, and the normalisation is
    one multiply-add over the image (half the time of flax's on a CPU). The short one is of both in one array: one
    kernel. The variance that they give has a relative error of about 2^-24 (1 + mean^2/variance) times a small number.
    """
    mean, square = _over_groups(jnp.stack([y.sum(axis=(1, 2)), jnp.square(y).sum(axis=(1, 2))]), y, groups)
    return mean, square


@_moments.defjvp
def _(groups, primals, tangents):
    # By itself a gradient would be put together and taken apart again for that array.
    (y,), (dy,) = primals, tangents
    mean = _over_groups(dy.sum(axis=(1, 2)), y, groups)
    return _moments(y, groups), (mean, 2 * _over_groups((y * dy).sum(axis=(1, 2)), y, groups))


def _over_groups(sums: Float[Array, "*n c"], y: Float[Array, "b h w c"], groups: int) -> Float[Array, "*n c"]:
    """Return means over images and groups of sums over images, for each channel of its group."""
    grouped = sums.reshape(*sums.shape[:-1], groups, -1)
    # The division comes last, at its place of use: a gradient then needs none between two sums.
    means = jnp.broadcast_to(grouped.sum(axis=-1, keepdims=True), grouped.shape) / (y[0].size // groups)
    return means.reshape(sums.shape)
