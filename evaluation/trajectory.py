"""How a few samples come into being: the probability flow and its denoised estimates at some times."""

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.context import Context
from evaluation.drawing import STREAM  # the first samples of that job, when its sampler is the flow
from evaluation.fold import Fold, write_arrays
from sampling.base import example_keys
from sampling.ode import Solver, flow
from score_flow.sharding import multiple, place, to_host

N_TIMES = 10


def build(context: Context) -> Fold:
    """One round: x_t and E[x0 | x_t] of one sample a device (eight at least) at ten times from noise to data."""
    run = context.run
    n = multiple(run.mesh, 8)
    t_min, t_max = context.options.smallest_time, context.options.largest_time
    times = jnp.linspace(t_max, t_min, N_TIMES)

    def draw(params, guide, pixels, seeds):
        denoiser = guide(run.model.bind(params, guide.in_turn(seeds)))
        x = denoiser.start(example_keys(run.seed, seeds, STREAM), run.image_shape, t_max)

        def onwards(x, ends):
            estimate = denoiser.x0(x, ends[0])
            return flow(denoiser, x, ends[0], ends[1], Solver(rtol=1e-3, atol=1e-3))[0], (x, estimate)

        last, (states, estimates) = jax.lax.scan(onwards, x, jnp.stack([times[:-1], times[1:]], axis=1))
        states = jnp.concatenate([states, last[None]])
        estimates = jnp.concatenate([estimates, denoiser.x0(last, times[-1])[None]])
        return pixels(states), pixels(estimates)

    def step(state, round_number):
        seeds = place(run.mesh, np.arange(n, dtype=np.uint32))
        image, x0 = to_host(jax.jit(draw)(context.params, context.guide, run.pixels, seeds))
        write_arrays(context.directory / "trajectory.npz", image=image, x0=x0, t=np.asarray(times))
        return state

    return Fold(1, lambda: {"done": np.zeros(1)}, step, lambda state: {"n_samples": n, "n_times": N_TIMES})
