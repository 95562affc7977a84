"""The training state, the compiled steps, and the loop around them."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from score_flow.errors import NonFinite
from score_flow.losses.base import Loss
from score_flow.networks.blocks import attention, devices
from score_flow.runs.sharding import batch_sharding, replicated, to_host
from score_flow.training.ema import gamma_of, power_share
from score_flow.training.flat import Layout, as_in
from score_flow.training.gradients import at_once, in_slices
from score_flow.training.matrices import unit_kernels
from score_flow.types import Batch, Params


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes. No key is stored: randomness is folded from the step.

    Its leaves are arrays, or what stands for them: jax.eval_shape's shapes, shardings, numpy arrays. What has shapes of
    parameters is a tree of their names, or flat (training/flat.py).
    """

    step: PyTree  # int32 ()
    params: PyTree
    ema: tuple[PyTree, ...]  # one for each rate, then for each width
    opt_state: PyTree
    time_state: PyTree


class Metrics(NamedTuple):
    """One row a step."""

    loss: Float[Array, "k"]
    grad_norm: Float[Array, "k"]


def keeps_unit(loss: Loss) -> bool:
    """Say whether the network that is trained is one whose kernels are brought back to magnitude 1 after each step."""
    return getattr(loss.network, "unit_kernels", False)


def ema_rate_at(rate: float, step: Int[Array, ""], warmup: bool) -> Float[Array, ""]:
    """Return the decay of an update: `rate`, or min(rate, (1 + n)/(10 + n)) with warm-up, n counting updates from 1."""
    n = jnp.asarray(step + 1, jnp.float32)
    return jnp.minimum(rate, (1 + n) / (10 + n)) if warmup else jnp.asarray(rate, jnp.float32)


def init_state(params: Params, loss: Loss, optimiser: optax.GradientTransformation, *, n_ema: int) -> TrainState:
    """Make the state that training begins in; every EMA starts at the parameters."""
    copies = tuple(jax.tree.map(jnp.copy, params) for _ in range(n_ema))
    return TrainState(jnp.zeros((), jnp.int32), params, copies, optimiser.init(params), loss.times.init())


def held(state: TrainState, optimiser: optax.GradientTransformation, layout: Layout | None) -> TrainState:
    """Return a state as the loop holds it, with all that is of parameters' shapes in vectors; None: as it is."""
    if layout is None:
        return state
    flat = layout.packed(state.params)
    opt_state = as_in(jax.eval_shape(optimiser.init, flat), state.opt_state)
    return state.replace(params=flat, ema=tuple(map(layout.packed, state.ema)), opt_state=opt_state)


@jax.jit
def all_finite(state: PyTree) -> Bool[Array, ""]:
    """Say whether every floating-point number of a state is finite: one reduction, of its own.

    Inside the program of a step it would change how that is fused, and with it the last bits of training.
    """
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.array(True), *(jnp.all(jnp.isfinite(leaf)) for leaf in leaves)]))


def check_state(step: int, state: TrainState) -> None:
    """Raise NonFinite unless all that a step left is finite; waits for it."""
    bad = [name for name in ("params", "ema", "opt_state") if not to_host(all_finite(getattr(state, name)))]
    if bad:
        what = " and the ".join(SAID[name] for name in bad)
        raise NonFinite(f"after step {step} the {what} are not finite, though its loss is. {REMEDY}")


SAID = {"params": "parameters", "ema": "averaged parameters", "opt_state": "optimiser's moments"}
REMEDY = "Nothing after the last checkpoint was saved; lower optim.lr, set optim.grad_clip, or look at the data."


def make_train_steps(
    loss: Loss,
    optimiser: optax.GradientTransformation,
    *,
    ema_rates: Sequence[float],
    ema_warmup: bool,
    seed: int,
    mesh: Mesh,
    shardings: TrainState,
    ema_stds: Sequence[float] = (),
    microbatches: int = 1,
    non_finite: str = "stop",
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Compile one program for the steps along the leading axis of a batch, {"image": (k, b, h, w, c), ...}.

    It donates the state. The result does not depend on k: the key of a step is folded from its number. The state's
    averages are exponential ones of the rates, then power-function ones of the relative widths ema_stds. Weights that
    the loss holds are arguments of the program, none of its constants. microbatches: slices that the gradients of a
    step are summed over. non_finite: "skip" leaves a step out whose loss or gradient is not finite, and with "rollback"
    the seed is an argument, which `reseeded` replaces.
    """
    gradients = in_slices(microbatches, shardings.params, mesh) if microbatches > 1 else at_once(shardings.params)
    gammas = [gamma_of(std) for std in ema_stds]

    def train_step(loss: Loss, other_seed: Array | None, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed if other_seed is None else other_seed), state.step)
        value, aux, grads = gradients(loss, state.params, state.time_state, key, batch)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params = unit_kernels(params) if keeps_unit(loss) else params
        ema = _averaged(params, state, ema_rates, ema_warmup, gammas)
        metrics = Metrics(value, optax.tree.norm(grads))
        new = TrainState(state.step + 1, params, ema, opt_state, aux.time_state)
        return _if_finite(new, state, metrics) if non_finite == "skip" else new, metrics

    def train_steps(
        loss: Loss, other_seed: Array | None, state: TrainState, batches: Batch
    ) -> tuple[TrainState, Metrics]:
        # What is traced is for these devices, and no forward-mode derivative is taken of it.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), attention.derivatives("backward"):
            return _repeated(functools.partial(train_step, loss, other_seed), state, batches)

    program = jax.jit(
        train_steps,
        in_shardings=(None, None, shardings, batch_sharding(mesh, leading=1)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=2,
    )
    return functools.partial(program, loss, np.uint32(seed) if non_finite == "rollback" else None)


def reseeded(steps: Callable, seed: int) -> Callable:
    """Return the steps of `make_train_steps`, made for rollbacks, with the randomness of another seed."""
    return functools.partial(steps.func, steps.args[0], np.uint32(seed))


def _if_finite(new: TrainState, old: TrainState, metrics: Metrics) -> TrainState:
    """Return the new state where loss and gradient are finite, else the old one with the new step: without a wait."""
    good = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old).replace(step=new.step)


def _averaged(
    params: Params, state: TrainState, rates: Sequence[float], warmup: bool, gammas: Sequence[float]
) -> tuple[PyTree, ...]:
    """Return the averages after a step that led to some parameters."""
    shares = [1 - ema_rate_at(rate, state.step, warmup) for rate in rates]
    shares += [power_share(gamma, state.step) for gamma in gammas]
    return tuple(optax.incremental_update(params, old, share) for share, old in zip(shares, state.ema, strict=True))


def _repeated(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]], state: TrainState, batches: Batch
) -> tuple[TrainState, Metrics]:
    """Do a step for each batch along the leading axis."""
    if jax.tree.leaves(batches)[0].shape[0] > 1:
        return jax.lax.scan(step, state, batches, unroll=devices.platform() == "cpu")
    # A scan of one step is slower than none (XLA:CPU compiles gradients of convolutions badly in loops).
    state, metrics = step(state, jax.tree.map(lambda x: x[0], batches))
    return state, jax.tree.map(lambda x: x[None], metrics)


# (previous step, step, state after it, metrics of the steps between): called after every program. The metrics are still
# on the device: fetching them waits for the steps.
Hook = Callable[[int, int, TrainState, Metrics], None]


def crossed(every: int, previous: int, step: int) -> bool:
    """Say whether a multiple of `every` lies in (previous, step]; every = 0 means never."""
    return every > 0 and step // every > previous // every


def fit(
    state: TrainState,
    train_steps: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    batches: Callable[[int, int], Batch],
    *,
    start: int,
    n_steps: int,
    n_jitted_steps: int,
    hooks: Sequence[Hook],
    stop: Callable[[], bool],
) -> tuple[int, TrainState]:
    """Train from step `start` to n_steps, n_jitted_steps at a time (fewer at the end), or until stop(), asked a loop.

    Returns the step reached and its state. Never waits for the device itself.
    """
    step = start
    while step < n_steps and not stop():
        k = min(n_jitted_steps, n_steps - step)
        state, metrics = train_steps(state, batches(step, k))
        previous, step = step, step + k
        for hook in hooks:
            hook(previous, step, state, metrics)
    return step, state
