"""NCSN++ and DDPM++: the U-Nets of score_sde (Song et al. 2021, app. H, arXiv:2011.13456)."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from score_flow.config.hints import Count, NotNegative, Positive, check_fields
from score_flow.config.limits import Limits
from score_flow.errors import UserError
from score_flow.networks.blocks import layers, resample
from score_flow.networks.blocks import ncsnpp as blocks
from score_flow.networks.blocks.layers import scaled_uniform
from score_flow.networks.blocks.remat import Remat, rematted
from score_flow.types import Condition

Resblock = Annotated[str, Limits(among=("biggan", "ddpm"))]
Block = Callable[..., Float[Array, "b h w c"]]  # (name, h, features=None, direction=None) -> h


class NCSNpp(nn.Module):
    """Time- and label-conditional U-Net; skip connections between the two ways, attention at some resolutions.

    Published on 32 x 32 x 3, width=128, channel_mult=(1, 2, 2, 2), attention_resolutions=(16,) and num_res_blocks=4 (8:
    "deep"): DDPM++ with the defaults (61.8 M, 106.6 M parameters); NCSN++ cont. with embedding="fourier", fir=True and
    progressive_input="residual" (62.8 M, 107.6 M). On 256 x 256 and above NCSN++ has progressive="output_skip" and
    progressive_input="input_skip".

    Attributes:
        width: channels of the first level; level i has width * channel_mult[i] at 1 / 2^i of the image's resolution.
        attention_resolutions: heights at which attention follows each residual block on the way down.
        attention_up: on the way up it follows the "last" one of such a height, or "each", as in DDPM's first code.
        embedding: "positional" (sin | cos) or "fourier" (random frequencies of scale fourier_scale) time features.
        conditional: without it the time is unused, and there are no labels.
        resblock: "biggan" resamples inside residual blocks, "ddpm" between them: by convolutions if resamp_with_conv.
        fir: resample with fir_kernel rather than by repeated pixels, means and strides.
        skip_rescale: divide every residual sum by sqrt(2).
        progressive: "output_skip" sums one image of each level of the way up, "residual" adds to each level the
            features of the one below, resampled by a convolution.
        progressive_input: "input_skip" joins the resampled image to each level of the way down, as a sum or as further
            channels (progressive_combine: "sum", "cat"), "residual" adds the input resampled by convolutions.
        label_first: labels join the time's features, as in EDM's networks, instead of what is made of them.
        init_scale: of the last layer of every block and of the outputs (0: they start at 0).
        groups: of normalisation; None for min(channels / 4, 32).
        remat: what the backward pass keeps of a block: all (none), what weights give (dots), nothing (full).
        out_channels: as the input if None.
    Raises:
        UserError: an unknown choice, labels without `conditional`, a FIR kernel that cannot be normalised, or an image
            whose sides are not multiples of 2^(levels - 1).
    """

    width: Count = 128
    channel_mult: Annotated[tuple[int, ...], Limits(least=1, fewest=1)] = (1, 2, 2, 2)
    num_res_blocks: Count = 4
    attention_resolutions: Annotated[tuple[int, ...], Limits(least=0)] = (16,)
    embedding: Annotated[str, Limits(among=layers.TIME_FEATURES)] = "positional"
    fourier_scale: Positive = 16.0
    conditional: bool = True
    resblock: Resblock = "biggan"
    resamp_with_conv: bool = True
    fir: bool = False
    fir_kernel: Annotated[resample.Kernel, Limits(fewest=1)] = (1.0, 3.0, 3.0, 1.0)
    skip_rescale: bool = True
    progressive: Annotated[str, Limits(among=("none", "output_skip", "residual"))] = "none"
    progressive_input: Annotated[str, Limits(among=("none", "input_skip", "residual"))] = "none"
    progressive_combine: Annotated[str, Limits(among=("sum", "cat"))] = "sum"
    nonlinearity: layers.Nonlinearity = "swish"
    init_scale: NotNegative = 0.0
    groups: Count | None = None
    dropout: layers.Dropout = 0.0
    num_classes: layers.ClassesGiven = 0
    augment_dim: layers.AugmentGiven = 0
    span: layers.SpanGiven = False
    guidance: layers.GuidanceGiven = False
    out_channels: layers.ChannelsGiven = None
    attention_up: Annotated[str, Limits(among=("last", "each"))] = "last"
    label_first: bool = False
    remat: Remat = "none"
    dtype: layers.PrecisionGiven = "float32"

    casts: ClassVar[bool] = True  # parameters of two axes and more are used in dtype alone, and may be sent in it

    def __post_init__(self):
        check_fields(self)
        if self.num_classes and not self.conditional:
            raise UserError(f"A network with num_classes={self.num_classes} needs conditional=True, got False.")
        if self.augment_dim and not self.conditional:
            raise UserError("config.data.augment needs config.network.conditional = True, got False.")
        for name in [name for name in ("span", "guidance") if getattr(self, name) and not self.conditional]:
            raise UserError(f"config.model.{name} needs config.network.conditional = True, got False.")
        if not sum(self.fir_kernel):
            raise UserError(f"fir_kernel must have a sum other than 0, got {self.fir_kernel}.")
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
        block = self._blocks(self._embed(time, condition), deterministic)
        h, skips = self._down(x, block)
        h = block("middle_0", h)
        h = self._attention("middle_attention", h)
        h = block("middle_1", h)
        return self._up(h, skips, x.shape[-1] if self.out_channels is None else self.out_channels, block)

    def _embed(self, time: Float[Array, "b"], condition: Condition) -> Float[Array, "b e"] | None:
        if not self.conditional:
            return None
        features = layers.TimeFeatures(self.embedding, self.width, self.fourier_scale, name="time_features")(time)
        embed = layers.Embedding(
            4 * self.width,
            self.num_classes,
            dtype=self.dtype,
            nonlinearity=self.nonlinearity,
            augment_dim=self.augment_dim,
            span=self.span,
            guidance=self.guidance,
            label_first=self.label_first,
            name="embedding",
        )
        return self._act(embed(features, condition))  # every block starts with it: once for all

    def _down(
        self, x: Float[Array, "b h w c"], block: Block
    ) -> tuple[Float[Array, "b h2 w2 c2"], list[Float[Array, "b _ _ _"]]]:
        h, pyramid = blocks.conv(self.width, dtype=self.dtype, name="conv_in")(x), x
        skips = [h]
        for level, mult in enumerate(self.channel_mult):
            if level:
                h = self._resample(f"down_{level}_resample", "down", h, block)
                h, pyramid = self._input_pyramid(f"down_{level}_input", h, pyramid)
                skips.append(h)
            for i in range(self.num_res_blocks):
                h = block(f"down_{level}_{i}", h, self.width * mult)
                if h.shape[1] in self.attention_resolutions:
                    h = self._attention(f"down_{level}_{i}_attention", h)
                skips.append(h)
        return h, skips

    def _up(
        self, h: Float[Array, "b h w c"], skips: list[Float[Array, "b _ _ _"]], out_channels: int, block: Block
    ) -> Float[Array, "b h2 w2 c_out"]:
        pyramid = None
        for level, mult in reversed(tuple(enumerate(self.channel_mult))):
            attends = h.shape[1] in self.attention_resolutions
            for i in range(self.num_res_blocks + 1):
                h = block(f"up_{level}_{i}", jnp.concatenate([h, skips.pop()], axis=-1), self.width * mult)
                if attends and self.attention_up == "each":
                    h = self._attention(f"up_{level}_{i}_attention", h)
            if attends and self.attention_up == "last":
                h = self._attention(f"up_{level}_attention", h)
            h, pyramid = self._output_pyramid(level, h, pyramid, out_channels)
            if level:
                h = self._resample(f"up_{level}_resample", "up", h, block)
        assert not skips  # one for each block of the way up
        out = pyramid if self.progressive == "output_skip" else self._read("out", h, out_channels, self.init_scale)
        return layers.at_least_float32(out)

    def _input_pyramid(
        self, name: str, h: Float[Array, "b h w c"], pyramid: Float[Array, "b h2 w2 c2"]
    ) -> tuple[Float[Array, "b h w c3"], Float[Array, "b _ _ _"]]:
        """The input, one level further down, joins the features: (features, pyramid)."""
        if self.progressive_input == "none":
            return h, pyramid
        features = h.shape[-1]
        if self.progressive_input == "residual":
            smaller = blocks.ResamplingConv(features, "down", self._kernel, self.dtype, name=name)(pyramid)
            h = blocks.residual_sum(smaller, h, self.skip_rescale)
            return h, h
        pyramid = resample.downsample(pyramid, self._kernel)
        mapped = layers.Dense(features, kernel_init=scaled_uniform(), dtype=self.dtype, name=name)(pyramid)
        return mapped + h if self.progressive_combine == "sum" else jnp.concatenate([mapped, h], axis=-1), pyramid

    def _output_pyramid(
        self, level: int, h: Float[Array, "b h w c"], pyramid: Float[Array, "b h2 w2 c2"] | None, out_channels: int
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c3"] | None]:
        """Return what a level adds to the output, which starts at the lowest level as None: (features, pyramid)."""
        name = f"up_{level}_output"
        if self.progressive == "output_skip":
            image = layers.at_least_float32(self._read(name, h, out_channels, self.init_scale))
            return h, image if pyramid is None else resample.upsample(pyramid, self._kernel) + image
        if self.progressive == "residual" and pyramid is None:
            return h, self._read(name, h, h.shape[-1], 1.0)
        if self.progressive == "residual":
            larger = blocks.ResamplingConv(h.shape[-1], "up", self._kernel, self.dtype, name=name)(pyramid)
            h = blocks.residual_sum(larger, h, self.skip_rescale)
            return h, h
        return h, None

    def _read(self, name: str, h: Float[Array, "b h w c"], features: int, scale: float) -> Float[Array, "b h w c2"]:
        h = self._act(blocks.group_norm(h.shape[-1], self.groups, name=f"norm_{name}")(h))
        return blocks.conv(features, scale, dtype=self.dtype, name=f"conv_{name}")(h)

    def _resample(
        self, name: str, direction: str, h: Float[Array, "b h w c"], block: Block
    ) -> Float[Array, "b h2 w2 c"]:
        if self.resblock == "biggan":
            return block(name, h, direction=direction)
        if self.resamp_with_conv:
            return blocks.ResamplingConv(h.shape[-1], direction, self._kernel, self.dtype, name=name)(h)
        return {"up": resample.upsample, "down": resample.downsample}[direction](h, self._kernel)

    def _blocks(self, embedding: Float[Array, "b e"] | None, deterministic: bool) -> Block:
        build = partial(
            rematted(blocks.ResidualBlock, self.remat),
            fir_kernel=self._kernel,
            shortcut_scale=1.0 if self.resblock == "biggan" else 0.1,  # score_sde's "NIN" layers start at scale .1
            init_scale=self.init_scale,
            skip_rescale=self.skip_rescale,
            nonlinearity=self.nonlinearity,
            groups=self.groups,
            dropout=self.dropout,
            deterministic=deterministic,
            dtype=self.dtype,
        )

        def block(name, h, features=None, direction=None):
            return build(features, direction, name=name)(h, embedding)

        return block

    def _attention(self, name: str, h: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        block = rematted(blocks.AttentionBlock, self.remat)
        return block(self.init_scale, self.skip_rescale, self.groups, self.dtype, name=name)(h)

    @property
    def _kernel(self) -> resample.Kernel | None:
        return self.fir_kernel if self.fir else None

    @property
    def _act(self) -> Callable[[Array], Array]:
        return layers.NONLINEARITIES[self.nonlinearity]

    def _check_size(self, x: Float[Array, "..."]) -> None:
        levels = len(self.channel_mult)
        factor = 2 ** (levels - 1)
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise UserError(
                f"{type(self).__name__} with {levels} levels needs images (b, h, w, c), h and w multiples of {factor}, "
                f"got shape {x.shape}."
            )


build = NCSNpp
