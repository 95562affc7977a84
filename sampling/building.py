"""From a configuration to its sampler (no plug-in: no `build`)."""

from sampling.base import Sampler
from score_flow.config import registries
from score_flow.config.components import resolve
from score_flow.config.options import Config


def build_sampler(config: Config) -> Sampler:
    """Build the sampler that config.sampling names; raises UserError for what it cannot be."""
    return resolve(registries.SAMPLERS, config.sampling, "config.sampling")
