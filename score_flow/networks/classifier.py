"""The classifier of noisy images that guides class-conditional sampling (Song et al. 2021, app. I.1, arXiv:2011.13456).

No plug-in, hence no `build`: it predicts a label, not a readout of (x0, noise). config.training.objective = classifier
trains it, with config.network.name = classifier and its fields.
"""

from functools import partial
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.config.hints import Count, Given, Positive, check_fields
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.networks.adm_classifier import ADMClassifier
from score_flow.networks.blocks import layers
from score_flow.networks.blocks.resample import downsample
from score_flow.types import Condition

STEM = 16  # channels before the first group
WIDTHS = (16, 32, 64)  # of the groups, times channel_multiplier
FOURIER_FEATURES, EMBEDDING = 128, 512
lecun_normal = nn.initializers.lecun_normal()
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class WideResNet(nn.Module):
    """Logits of p(label | x_t): a Wide ResNet told of log sigma (Zagoruyko and Komodakis 2016, arXiv:1605.07146).

    The guided score is score(x_t) + grad_x log softmax(logits)[label]. Published on CIFAR-10: the defaults ("28-10"),
    38 913 242 parameters, with the mean and std of CIFAR-10 and images in [0, 1] plus sigma noise. Its normalisations
    are of groups of channels of one image, so that nothing depends on the batch.

    Attributes:
        blocks_per_group: residual blocks at each of three resolutions.
        channel_multiplier: width of the residual blocks over a plain ResNet's.
        data_mean, data_std: of each channel of clean images, or one number for all; the input is first standardised by
            them, then by its own mean and standard deviation.
        dropout: between the convolutions of each block.
    Raises:
        UserError: images whose sides are not multiples of 4, or whose channels are not those of data_mean.
    """

    blocks_per_group: Count = 4
    channel_multiplier: Count = 10
    num_classes: Annotated[int, Given("the number of the data's classes")] = 10
    fourier_scale: Positive = 16.0
    data_mean: Annotated[tuple[float, ...], Limits(fewest=1)] = (0.0,)
    data_std: Annotated[tuple[float, ...], Limits(above=0, fewest=1)] = (1.0,)
    dropout: layers.Dropout = 0.0
    dtype: layers.PrecisionGiven = "float32"

    def __post_init__(self):
        check_fields(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        time: Float[Array, "b"],
        condition: Condition = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b num_classes"]:
        """time is log sigma, as published; the result is at least float32. The condition is not looked at."""
        self._check_size(x)
        features = layers.FourierFeatures(FOURIER_FEATURES, self.fourier_scale, name="fourier")(time)
        embed = layers.Embedding(EMBEDDING, kernel_init=lecun_normal, dtype=self.dtype, name="embedding")
        embedding = nn.swish(embed(features))  # every block starts with it: once for all

        h = _conv(STEM, self.dtype, "conv_in")(self._standardised(x))
        for group, width in enumerate(WIDTHS):
            for block in range(self.blocks_per_group):
                stride = 2 if group and not block else 1
                build = partial(ResidualBlock, width * self.channel_multiplier, stride, group == block == 0)
                h = build(self.dropout, deterministic, self.dtype, name=f"group_{group}_{block}")(h, embedding)
        h = nn.relu(_norm(h, "norm_out")).mean(axis=(1, 2))
        out = nn.Dense(self.num_classes, kernel_init=_uniform_by_outputs, dtype=self.dtype, name="out")
        return layers.at_least_float32(out(h))

    def _standardised(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = (x - jnp.asarray(self.data_mean, x.dtype)) / jnp.asarray(self.data_std, x.dtype)
        n = x[0].size
        mean, variance = x.mean(axis=(1, 2, 3), keepdims=True), x.var(axis=(1, 2, 3), keepdims=True)
        # The bound inside the root: outside, the gradient at an image of one colour would be 0 x infinity.
        return (x - mean) / jnp.sqrt(jnp.maximum(variance, 1 / n))

    def _check_size(self, x: Float[Array, "..."]) -> None:
        factor = 2 ** (len(WIDTHS) - 1)
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise UserError(
                f"WideResNet needs images (b, h, w, c) with h and w multiples of {factor}, got shape {x.shape}."
            )
        for name in ("data_mean", "data_std"):
            if len(getattr(self, name)) not in (1, x.shape[3]):
                raise UserError(f"{name} is {getattr(self, name)}; allowed: 1 or {x.shape[3]} numbers.")


class ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x))) + W embedding))), with x pooled and given zero channels if need be."""

    features: int
    stride: int
    activate_shortcut: bool  # relu(norm(x)) + ... instead of x + ...
    dropout: float
    deterministic: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], embedding: Float[Array, "b e"]) -> Float[Array, "b h2 w2 c2"]:
        h = nn.relu(_norm(x, "norm_0"))
        x = h if self.activate_shortcut else x
        h = _conv(self.features, self.dtype, "conv_0", strides=self.stride)(h)
        h += nn.Dense(self.features, dtype=self.dtype, name="embedding")(embedding)[:, None, None]
        h = nn.relu(_norm(h, "norm_1"))
        h = nn.Dropout(self.dropout, deterministic=self.deterministic)(h)
        h = _conv(self.features, self.dtype, "conv_1")(h)
        x = downsample(x) if self.stride == 2 else x
        return h + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))


def _conv(features: int, dtype: str, name: str, **kwargs) -> nn.Conv:
    return nn.Conv(features, (3, 3), use_bias=False, kernel_init=he_normal, dtype=dtype, name=name, **kwargs)


def _norm(x: Float[Array, "b h w c"], name: str) -> Float[Array, "b h w c"]:
    """min(channels / 4, 32) groups as published; the next smaller divisor where that leaves a remainder."""
    channels = x.shape[-1]
    groups = next(n for n in range(min(channels // 4, 32), 0, -1) if channels % n == 0)
    return layers.GroupNorm(groups, epsilon=1e-5, name=name)(x)


def _uniform_by_outputs(key: Array, shape: tuple[int, ...], dtype=jnp.float32, *_) -> Array:
    """U(-1/sqrt(n), 1/sqrt(n)) for n outputs."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


NETWORKS = {"classifier": WideResNet, "adm_classifier": ADMClassifier}
"""The classifiers by name; config.network.name takes module.function for one of another package.

A row is a linen module's class, or a function that returns a module, with fields for config.network and `num_classes`,
which the data decide. It is called as networks are, (x, time, condition=None, *, deterministic=True), without a
condition, and gives logits (b, num_classes).
"""
