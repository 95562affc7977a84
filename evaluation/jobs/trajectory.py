"""How a few samples come into being: the probability flow and its denoised estimates at some times."""

import jax
import jax.numpy as jnp
import numpy as np

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job
from evaluation.report import page
from sampling.base import Stream, example_keys
from sampling.flow import Solver, flow
from score_flow.runs.sharding import multiple, place, to_host

N, N_TIMES = 8, 10
SOLVER = Solver(rtol=1e-3, atol=1e-3)


def build(context: Context, opened: None) -> Fold:
    """Follow, in one round, x_t and E[x0 | x_t] of eight samples at ten times from noise to data."""
    run = context.run
    t_min, t_max = context.options.smallest_time, context.options.largest_time
    times = jnp.linspace(t_max, t_min, N_TIMES)

    def draw(params, guide, pixels, seeds):
        denoiser = guide(run.model.bind(params, guide.in_turn(seeds)))
        # Those of the job samples, where its sampler is the flow.
        x = denoiser.start(example_keys(run.seed, seeds, Stream.SAMPLES), run.image_shape, t_max)

        def onwards(x, ends):
            estimate = denoiser.x0(x, ends[0])
            return flow(denoiser, x, SOLVER, t0=ends[0], t1=ends[1])[0], (x, estimate)

        last, (states, estimates) = jax.lax.scan(onwards, x, jnp.stack([times[:-1], times[1:]], axis=1))
        states = jnp.concatenate([states, last[None]])
        estimates = jnp.concatenate([estimates, denoiser.x0(last, times[-1])[None]])
        return pixels(states), pixels(estimates)

    def step(state):
        seeds = place(run.mesh, np.arange(multiple(run.mesh, N), dtype=np.uint32))
        image, x0 = to_host(jax.jit(draw)(context.params, context.guide, run.pixels, seeds))
        write_arrays(context.directory / "trajectory.npz", image=image[:, :N], x0=x0[:, :N], t=np.asarray(times))
        return {"done": np.ones(1)}

    result = {"n_samples": N, "n_times": N_TIMES, "sampler": f"probability flow by {SOLVER.described()}"}
    return Fold(
        context.key, lambda state: int(not state["done"]), lambda: {"done": np.zeros(1)}, step, lambda state: result
    )


def section(record: page.Record) -> str:
    """Show x(t) and E[x(0) | x(t)] of some samples at some times."""
    arrays = record.arrays("trajectory", "trajectory.npz")
    sheets = []
    for name, what in (("image", "State x(t)"), ("x0", "Denoised estimate E[x(0) | x(t)]")):
        if name in arrays and "t" in arrays:
            rows = np.swapaxes(arrays[name][:, :N], 0, 1)  # one row a sample
            images = rows.reshape(-1, *rows.shape[2:])
            alt = f"{what} of {len(rows)} samples, one a row, at {len(arrays['t'])} times from noise to data"
            sheets.append(page.sheet(images, record.levels, what, alt=alt, heads=[f"{t:.2f}" for t in arrays["t"]]))
    note = "The time t is above each column: 1 is noise, 0 data."
    return page.section("From noise to data", page.pair(*sheets), note=note)


job = Job(build, frozenset({"denoiser", "guidance"}), ("smallest_time", "largest_time"), section=section, place=20)
