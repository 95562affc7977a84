"""NCSNv2: one score network for all noise levels, which it is not told (Song and Ermon 2020, arXiv:2006.09011)."""

from functools import partial
from typing import Annotated, ClassVar, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float, Int

from score_flow.config.hints import Count, Positive, check_fields
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.networks.blocks import layers
from score_flow.networks.blocks.refinenet import (
    COEFFICIENTS,
    INTERPOLATIONS,
    Norm,
    RefineBlock,
    ResidualBlock,
    Style,
    average_pool,
    max_pool,
)
from score_flow.networks.blocks.remat import Remat, rematted
from score_flow.types import Condition


class Plan(NamedTuple):
    """(channels / width, dilation) of the stages of an encoder, and channels / width of the refine blocks after them.

    Every stage but the first goes down: it halves the image where its dilation is 1, and dilates where it is not.
    """

    stages: tuple[tuple[int, int], ...]
    refined: tuple[int, ...]


PLANS = {  # by the side of the images that the variant was made for
    64: Plan(((1, 1), (2, 1), (2, 2), (2, 4)), (2, 2, 2, 1)),
    128: Plan(((1, 1), (2, 1), (2, 1), (4, 2), (4, 4)), (4, 2, 2, 1, 1)),
    256: Plan(((1, 1), (2, 1), (2, 1), (2, 1), (4, 2), (4, 4)), (4, 2, 2, 2, 1, 1)),
}


class NCSNv2(nn.Module):
    """Residual encoder in stages of two blocks, and a chain of refine blocks that joins them, the deepest first.

    It ignores time: the noise level enters where the output is divided by sigma, outside. The defaults are score_sde's
    in JAX; score_sde_pytorch's are interpolation="bilinear_align_corners", unbiased=True, narrow_refinement=True.

    Attributes:
        resolution: 64, 128 or 256, the variant for images of up to about that side; each has more stages than the last.
        width: channels of the first stage.
        normalization: "InstanceNorm++", "InstanceNorm", "VarianceNorm" or "NoneNorm".
        nonlinearity: "elu", "relu", "lrelu" (slope .2) or "swish".
        interpolation: "bilinear", "bilinear_align_corners" or "nearest_neighbor", of refine blocks' coarser input.
        unbiased: the variances of the normalisation divide by n - 1 (except InstanceNorm's).
        narrow_refinement: the last but one refine block hands on width channels, not 2 width (resolution 64 only).
        norm_out_epsilon: of the last normalisation; score_sde_pytorch gives InstanceNorm its number of noise levels.
        dropout, num_classes: no published network has them. Dropout precedes the last convolution of the encoder's
            blocks; a vector of the label, with a last row for the null class, is added to the encoder's input.
        remat: what the backward pass keeps of a block: all (none), what weights give (dots), nothing (full).
        out_channels: as the input if None.
    Raises:
        UserError: an unknown choice, a missing label, or an image whose sides the stages cannot halve.
    """

    resolution: Annotated[int, Limits(among=tuple(PLANS))] = 64
    width: Count = 128
    normalization: Annotated[str, Limits(among=tuple(COEFFICIENTS))] = "InstanceNorm++"
    nonlinearity: layers.Nonlinearity = "elu"
    interpolation: Annotated[str, Limits(among=INTERPOLATIONS)] = "bilinear"
    unbiased: bool = False
    narrow_refinement: bool = False
    norm_out_epsilon: Positive = 1e-5
    dropout: layers.Dropout = 0.0
    num_classes: layers.ClassesGiven = 0
    out_channels: layers.ChannelsGiven = None
    remat: Remat = "none"
    dtype: layers.PrecisionGiven = "float32"

    num_scales: ClassVar[int] = 0  # rows of the normalisations' tables; 0: no tables
    ignores_time: ClassVar[bool] = True

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
    ) -> Float[Array, "b h w c_out"]:
        self._check_size(x)
        level = self.level(time)
        norm = partial(Norm, self.normalization, self.num_scales, self.unbiased)
        act, pool = layers.NONLINEARITIES[self.nonlinearity], max_pool if level is None else average_pool
        style = Style(act, norm, pool, self.interpolation, self.dtype)

        h = style.conv(x, self.width, "conv_in")
        if self.num_classes:
            h += layers.label_embedding(condition, self.num_classes, self.width, self.dtype)[:, None, None]
        stages = self._encode(h, style, level, deterministic)
        h = self._refine(stages, style if level is not None else style._replace(norm=None), level)
        h = style.act(norm(epsilon=self.norm_out_epsilon, name="norm_out")(h, level))
        out_channels = x.shape[-1] if self.out_channels is None else self.out_channels
        return layers.at_least_float32(style.conv(h, out_channels, "conv_out"))

    def level(self, time: Float[Array, "b"]) -> Int[Array, "b"] | None:
        """Return the noise level that the normalisations are told: none."""
        return None

    def _encode(
        self, h: Float[Array, "b h w c"], style: Style, level: Int[Array, "b"] | None, deterministic: bool
    ) -> list[Float[Array, "b _ _ _"]]:
        """Return the output of each stage."""
        outputs = []
        build = rematted(ResidualBlock, self.remat, static_argnums=(3,))
        for i, (mult, dilation) in enumerate(PLANS[self.resolution].stages):
            for j in range(2):
                down = i > 0 and j == 0
                block = build(style, self.width * mult, down, dilation, self.dropout, name=f"stage_{i}_{j}")
                h = block(h, level, deterministic)
            outputs.append(h)
        return outputs

    def _refine(
        self, stages: list[Float[Array, "b _ _ _"]], style: Style, level: Int[Array, "b"] | None
    ) -> Float[Array, "b h w c"]:
        mults = list(PLANS[self.resolution].refined)
        if self.narrow_refinement:
            mults[-2] = 1
        h, build = None, rematted(RefineBlock, self.remat)
        for i, (mult, stage) in enumerate(zip(mults, reversed(stages), strict=True)):
            inputs = (stage,) if h is None else (stage, h)
            depth = 3 if i == len(mults) - 1 else 1
            h = build(style, self.width * mult, depth, name=f"refine_{i}")(inputs, level)
        return h

    def _check_size(self, x: Float[Array, "..."]) -> None:
        factor = 2 ** sum(dilation == 1 for _, dilation in PLANS[self.resolution].stages[1:])
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise UserError(
                f"{type(self).__name__} with resolution={self.resolution} needs images (b, h, w, c) with h and w "
                f"multiples of {factor}, got shape {x.shape}."
            )


build = NCSNv2
