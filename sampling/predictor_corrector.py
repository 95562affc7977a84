"""Predictor-corrector sampling (Song et al. 2021, alg. 1, arXiv:2011.13456)."""

from collections.abc import Mapping
from typing import Annotated, Any

from sampling.base import WHERE, Kernel, Sampler, chain_sampler
from sampling.published import CHAINS, Norms, PublishedChain
from score_flow.config import components, registries
from score_flow.config.components import Component
from score_flow.config.former import CORRECTORS, PREDICTORS
from score_flow.config.hints import Count, Positive, UnitTime, limited, parameters_of
from score_flow.config.limits import Limits, check_times
from score_flow.errors import UserError
from score_flow.paths.base import Path
from score_flow.process.grid import GridChoice, Intervals, choose, intervals

KERNELS = {"predictor": registries.PREDICTORS, "corrector": registries.CORRECTORS}
NONE = (("none", ""),)
# score_sde's names are understood.
PREDICTOR = Annotated[str, Limits(among=("", registries.PREDICTORS), aliases=tuple(PREDICTORS.items()))]
CORRECTOR = Annotated[str, Limits(among=("", registries.CORRECTORS), aliases=tuple(CORRECTORS.items()))]


def kernel(role: str, name: str, own: Mapping[str, Any] | None = None, **known: Any) -> Kernel:
    """Build the predictor or corrector of a name from arguments of its own, checked, and those known that it takes."""
    build = KERNELS[role].entry(name, f"{WHERE}.{role}")
    mine = {field: value for field, value in (own or {}).items() if field in parameters_of(build)}
    return components.call(build, Component(name, mine), WHERE, **known)


def _refuse(roles: Mapping[str, str], *, chain: str, norms: str, probability_flow: bool) -> None:
    """Raise UserError where nothing is to be done, or a kernel has no use for what is given."""
    if not roles:
        raise UserError(f"{WHERE}: name a predictor, a corrector, or both.")
    for role, name in roles.items() if chain else ():
        _refuse_without("chain", role, name, given=f"chain = {chain}")
    if norms == "batch":
        _refuse_without("norms", "corrector", roles.get("corrector", ""), given="norms = batch")
    if probability_flow:
        given, note = "probability_flow", " (ddim is the flow of ancestral)"
        _refuse_without("probability_flow", "predictor", roles.get("predictor", ""), given=given, note=note)


def _refuse_without(argument: str, role: str, name: str, *, given: str, note: str = "") -> None:
    """Raise UserError unless the kernel of a name has an argument."""
    able = [n for n in KERNELS[role].names() if argument in parameters_of(KERNELS[role].entry(n, WHERE))]
    if not name or argument not in parameters_of(KERNELS[role].entry(name, f"{WHERE}.{role}")):
        raise UserError(f"{WHERE}.{given} needs {role} = {' or '.join(able)}, got {name!r}{note}.")


@limited(WHERE)
def build(
    t_min: UnitTime = 1e-3,
    t_max: UnitTime = 1.0,
    n_steps: Count = 1000,
    *,
    grid: GridChoice = "uniform",
    predictor: PREDICTOR = "reverse_diffusion",
    corrector: CORRECTOR = "",
    snr: Positive = 0.16,
    n_corrector_steps: Count = 1,
    norms: Norms = "example",
    chain: Annotated[str, Limits(among=("", *CHAINS), aliases=NONE)] = "",
    probability_flow: bool = False,
    denoise: bool = True,
    **own: Any,
) -> Sampler:
    """Take n_corrector_steps corrections and a prediction on each of n_steps intervals; an empty name is none.

    chain: score_sde's forward chain and its n_steps times in place of the grid and of the path's exact transitions:
    ddpm (VP), smld (VE), euler (any). Its presets also take norms = batch. probability_flow: predict along the flow.
    denoise: leave out the noise of the last step. own: what the two kernels take besides.
    """
    roles = {role: name for role, name in (("corrector", corrector), ("predictor", predictor)) if name}
    _refuse(roles, chain=chain, norms=norms, probability_flow=probability_flow)
    check_times(WHERE, t_min, t_max)
    grid_times, published = choose(f"{WHERE}.grid", grid), PublishedChain(chain, n_steps) if chain else None
    if chain and grid != "uniform":
        raise UserError(f"{WHERE}.chain = {chain} has its own times; grid must be uniform.")

    known = {"t_min": t_min, "t_max": t_max, "n_steps": n_steps, "grid": grid, "snr": snr, "norms": norms}
    known |= {"chain": published, "probability_flow": probability_flow, "denoise": denoise}
    found = {role: [kernel(role, name, own, **known)] for role, name in roles.items()}
    kernels = found.get("corrector", []) * n_corrector_steps + found.get("predictor", [])

    def times(path: Path) -> Intervals:
        if published:
            return published.intervals(t_min, t_max)
        return intervals(grid_times(path, n_steps, t_min, t_max))

    return chain_sampler(kernels, times, denoise)
