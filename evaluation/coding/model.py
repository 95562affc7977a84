"""The model of a chain as one compiled program on one device, so that it gives the same bits to coder and decoder."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from evaluation.coding import file as code_file
from evaluation.coding.chain import Step, chain_of
from evaluation.context import Context
from sampling.guided import Thresholded
from score_flow.errors import NonFinite
from score_flow.process.bound import VariationalBound
from score_flow.runs.sharding import to_host


class ChainModel:
    """The chain of a bound and what the network says of its latents, for `lanes` images at once.

    It is compiled when it is first asked, for the first device of the process: neither their number nor the batches of
    an evaluation change a bit.
    """

    def __init__(self, context: Context, bound: VariationalBound, lanes: int, cells: int):
        self.chain, self.bound, self.lanes = chain_of(bound, cells), bound, lanes
        self.shape = context.run.image_shape
        self.d = math.prod(self.shape)
        self._context, self._device = context, jax.local_devices()[0]

    def __call__(self, z: Float[np.ndarray, "lanes d"], i: int, x0: Float[np.ndarray, "lanes d"] | None) -> Step:
        """Return what the network says of the latents of one step; raises NonFinite where it is not finite."""
        z, i = self._placed(z), jax.device_put(np.int32(i), self._device)
        estimate, mean, std = self._compiled(self._params, z, i)
        bits = None if x0 is None else np.asarray(self._term(self._placed(x0), z, estimate, i), np.float64)
        mean, std = (np.asarray(x, np.float64).reshape(self.lanes, -1) for x in (mean, std))
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise NonFinite("code: what the network says of a latent is not finite.")
        return Step(mean, std, bits)

    def prior(self, images: UInt8[np.ndarray, "lanes d"]) -> Float[np.ndarray, "lanes"]:
        """Return the bound's constant of each image, bits per dimension."""
        grid = self.chain.grids[0]
        return np.asarray(self.bound.prior(self._placed(images * grid.width + grid.base)), np.float64)

    @functools.cached_property
    def facts(self) -> code_file.Facts:
        """What must be the same where its codes are decoded."""
        key = {name: self._context.key.get(name) for name in ("weights", "checkpoint")}
        return key | code_file.program_facts(self._lowered.as_text())

    @functools.cached_property
    def _params(self) -> Any:
        return jax.device_put(to_host(self._context.params), self._device)

    @functools.cached_property
    def _lowered(self) -> Any:
        run, clip = self._context.run, self._context.options.vlb_clip

        def said(params, z, i):
            denoiser = run.model.bind(params)
            if clip:
                denoiser = Thresholded(denoiser, run.scaling.low, run.scaling.high)
            step = jnp.broadcast_to(i, z.shape[:1])
            with jax.default_matmul_precision("highest"):  # as likelihoods are computed
                estimate = denoiser.estimate(z, jnp.asarray(self.bound.times, z.dtype)[step])
            mean = self.bound.posterior_mean(z, estimate.x0, step)
            log_variance = self.bound.log_variance(estimate.variance, z, step)
            return estimate, mean, jnp.broadcast_to(jnp.exp(log_variance / 2), z.shape)

        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self._params)
        z = jax.ShapeDtypeStruct((self.lanes, *self.shape), jnp.float32)
        return jax.jit(said).lower(shapes, z, jax.ShapeDtypeStruct((), jnp.int32))

    @functools.cached_property
    def _compiled(self) -> Any:
        return self._lowered.compile()

    @functools.cached_property
    def _term(self) -> Any:
        return jax.jit(lambda x0, z, estimate, i: self.bound.term(x0, z, estimate, jnp.broadcast_to(i, z.shape[:1])))

    def _placed(self, x: Float[np.ndarray, "lanes d"]) -> jax.Array:
        return jax.device_put(x.astype(np.float32).reshape(self.lanes, *self.shape), self._device)
