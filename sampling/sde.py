"""The reverse SDE, with any diffusion."""

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp

from sampling.base import WHERE, Sampler, Samples, finite, split
from sampling.reverse_sde import DIFFUSIONS, LAST_STEPS, METHODS, last, reverse_sde, stable, unbounded
from score_flow.config.hints import Count, NotNegative, UnitTime, limited
from score_flow.config.limits import Limits, check_times
from score_flow.model import Denoiser
from score_flow.paths.base import Coefficients
from score_flow.process.grid import GridChoice, choose
from score_flow.types import Keys, Times


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 250,
    *,
    method: Annotated[str, Limits(among=tuple(METHODS))] = "euler",
    grid: GridChoice = "uniform",
    diffusion: Annotated[str, Limits(among=tuple(DIFFUSIONS))] | Callable[[Coefficients, Times, float], Times] = "g2",
    norm: NotNegative = 1.0,
    last_step: Annotated[str, Limits(among=LAST_STEPS)] = "mean",
    last_step_size: UnitTime = 0.0,
    bounded: bool = True,
) -> Sampler:
    """Take n_steps steps of the reverse SDE to max(t_min, last_step_size), then the last step down from there.

    last_step_size = 0 stands for t_min: the last step then goes from t_min to 0. bounded = False leaves w as it is
    (see `stable`), as SiT does.
    """
    check_times(WHERE, t_min, t_max)
    grid_times = choose(f"{WHERE}.grid", grid)
    form = diffusion if callable(diffusion) else DIFFUSIONS[diffusion]
    t_end = t_min if last_step == "none" else max(t_min, last_step_size)
    check_times(WHERE, t_end, t_max, ("t_min", "t_max") if t_end == t_min else ("last_step_size", "t_max"))
    bound = stable if bounded else unbounded

    def w(c, t):
        return form(c, t, norm)

    def sample(keys: Keys, denoiser: Denoiser, shape: tuple[int, ...]) -> Samples:
        prior_keys, noise_keys = split(keys)
        times = grid_times(denoiser.path, n_steps, t_end, t_max)
        if method == "noise_first_heun":  # a chain, here to its last step
            denoiser = denoiser.in_chain()
        x = denoiser.start(prior_keys, shape, float(times[0]))
        x = reverse_sde(noise_keys, denoiser, x, times=times, w=w, method=method, bound=bound)
        end = float(times[-1])
        kind = last_step if end > 0 else "none"
        x = last(denoiser, x, end, step=end, kind=kind, w=w, bound=bound)
        x = denoiser.constrain(x, x, jnp.zeros_like(x), jnp.zeros(()))[1]
        calls = (len(times) - 1) * METHODS[method][1] + (kind != "none")
        return Samples(x, jnp.asarray(calls), finite(x))

    return sample
