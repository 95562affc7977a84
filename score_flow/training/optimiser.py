"""The optimiser: its learning rate by the step, and what becomes of a gradient."""

import dataclasses
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from score_flow.config.options import OptimOptions
from score_flow.errors import UserError
from score_flow.training import matrices
from score_flow.training.flat import Layout, layout_of


@dataclasses.dataclass(frozen=True)
class Rate:
    """The learning rate of a step, counted from 0: it grows linearly from 0 over `warmup` steps, and then stays at lr
    (constant), falls as half a cosine (cosine) or a line (linear) to 0 at n_iters, or as 1/sqrt(step) (inverse_sqrt),
    that from the step decay_start on, if it is not 0.

    With numpy as xp it is one of the host, in float64: optax's own, equal to these, would wait for the device. Raises
    UserError where nothing is left to fall, or there is no step from which to.
    """

    lr: float
    schedule: str = "constant"
    warmup: int = 0
    n_iters: int = 0
    decay_start: int = 0

    def __post_init__(self):
        if self.schedule in ("cosine", "linear") and self.warmup >= self.n_iters:
            raise UserError(
                f"config.optim.warmup is {self.warmup}; with optim.schedule = {self.schedule}, which falls from there, "
                f"it must be below the {self.n_iters} steps of training."
            )
        if self.schedule == "inverse_sqrt" and not self._start:
            raise UserError(
                "config.optim.warmup is 0; optim.schedule = inverse_sqrt is sqrt(warmup/step): allowed: at least 1, "
                "or a config.optim.decay_start."
            )
        if self.decay_start and self.schedule != "inverse_sqrt":
            raise UserError(
                f"config.optim.decay_start is {self.decay_start}, which optim.schedule = {self.schedule} has no use "
                "for: leave it at 0."
            )

    @property
    def _start(self) -> int:
        """The step from which it falls as 1/sqrt(step)."""
        return self.decay_start or self.warmup

    def __call__(self, step: Any, xp: ModuleType = jnp) -> Any:
        rate = self.lr * xp.minimum(step / self.warmup, 1.0) if self.warmup > 0 else self.lr
        if self.schedule == "constant":
            return rate
        if self.schedule == "inverse_sqrt":
            return rate * xp.sqrt(self._start / xp.maximum(step, self._start))
        left = xp.clip((self.n_iters - step) / (self.n_iters - self.warmup), 0.0, 1.0)
        return rate * (left if self.schedule == "linear" else 0.5 * (1 - xp.cos(np.pi * left)))

    @property
    def changes(self) -> bool:
        """Whether it is another at another step: then the optimiser's state counts them."""
        return self.warmup > 0 or self.schedule != "constant"


def rate_of(options: OptimOptions, n_iters: int) -> Rate:
    """Return the learning rate of config.optim over so many steps."""
    return Rate(options.lr, options.schedule, options.warmup, n_iters, options.decay_start)


def optimiser_of(options: OptimOptions, n_iters: int) -> optax.GradientTransformation:
    """Build the optimiser of config.optim over so many steps; raises UserError for options that it has no use for."""
    name, default = options.optimizer, OptimOptions()
    if name != "Muon" and options.momentum != default.momentum:
        raise UserError(
            f"config.optim.momentum is {options.momentum}, which optim.optimizer = {name} has no use for: "
            f"leave it at {default.momentum} (its own is optim.beta1)."
        )
    if options.decay_on != default.decay_on and (name == "Adam" or not options.weight_decay):
        raise UserError(
            f"config.optim.decay_on is {options.decay_on!r}, which is of a decoupled decay: it needs "
            f"optim.optimizer = AdamW or Muon, got {name}, and optim.weight_decay > 0, got {options.weight_decay}."
        )
    settings = options.to_dict()
    return make_optimiser(settings.pop("optimizer"), n_iters=n_iters, **settings)


def make_optimiser(
    name: str, lr: float, *, beta1: float, beta2: float, eps: float, warmup: int, grad_clip: float, weight_decay: float,
    schedule: str = "constant", decay_start: int = 0, n_iters: int = 0, momentum: float = 0.95, decay_on: str = "all",
) -> optax.GradientTransformation:  # fmt: skip
    """Build Adam, AdamW or Muon after a clip by the global norm, with the learning rate of `Rate`."""
    rate = Rate(lr, schedule, warmup, n_iters, decay_start)
    clip = optax.clip_by_global_norm(grad_clip) if grad_clip > 0 else optax.identity()
    decay = matrices.decayed(weight_decay, decay_on) if weight_decay > 0 else optax.identity()
    adam = optax.scale_by_adam(b1=beta1, b2=beta2, eps=eps)
    # Adam adds the decay to the gradient (L2), AdamW to the update (Loshchilov & Hutter 2019, arXiv:1711.05101).
    order = {
        "Adam": lambda: (clip, decay, adam),
        "AdamW": lambda: (clip, adam, decay),
        "Muon": lambda: (clip, matrices.muon(momentum, adam), decay),
    }[name]()
    return optax.chain(*order, optax.scale_by_learning_rate(rate if rate.changes else lr))


# On a CPU a kernel costs little to start, and a copy more; arrays of several axes are no vectors in a TPU's memory.
FLAT_ON = ("gpu",)
# Numbers of a parameter whose own kernel is long against its start. One of a stack of blocks would be copied for them.
LARGE = 1 << 20


def layout_for(options: OptimOptions, params: PyTree, mesh: Mesh) -> Layout | None:
    """Return how parameters lie in vectors while they are trained on some devices; None: they stay a tree.

    They do where each is split over devices, where the platform has nothing of it (FLAT_ON), and where most of them are
    in large matrices: SiT-XL/2 saves a tenth of its kernels, which are long, and needs more memory.
    """
    platform, leaves = mesh.devices.flat[0].platform, jax.tree.leaves(params)
    most = sum(leaf.size for leaf in leaves if _is_large(leaf.shape)) > sum(leaf.size for leaf in leaves) / 2
    if mesh.shape["fsdp"] > 1 or platform not in FLAT_ON or most:
        return None

    def kind(path: tuple[str, ...], shape: tuple[int, ...]) -> str | None:
        its = matrices.kind(path, len(shape))
        of_muon = its == "hidden" and options.optimizer == "Muon"  # which needs their axes
        return None if of_muon or _is_large(shape) else its

    return layout_of(params, kind, outputs_first=platform == "gpu")


def _is_large(shape: tuple[int, ...]) -> bool:
    return math.prod(shape) >= LARGE and len(shape) < 4  # kernels of convolutions lie in vectors in another order


def updates_of(opt_state: PyTree) -> int:
    """Return how many updates an optimiser has made: fewer than the run's steps where the weights were imported."""
    return int(next(leaf for leaf in jax.tree.leaves(opt_state) if jnp.issubdtype(leaf.dtype, jnp.integer)))
