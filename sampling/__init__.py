"""Samplers, one a file: sampling.heun(n_steps=18) is that of heun.py."""

from typing import TYPE_CHECKING

from score_flow.config import packages

packages.of_plug_ins(__name__)

if TYPE_CHECKING:  # what an editor knows of them
    from sampling.ancestral import build as ancestral
    from sampling.ddim import build as ddim
    from sampling.heun import build as heun
    from sampling.multistep import build as multistep
    from sampling.ode import build as ode
    from sampling.predictor_corrector import build as predictor_corrector
    from sampling.sde import build as sde
    from sampling.unipc import build as unipc
