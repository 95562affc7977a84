"""What a config says of plug-ins, all of them checked before anything is opened."""

from sampling.building import build_sampler
from score_flow.config.components import Component, check
from score_flow.config.loading import values_of
from score_flow.config.options import SCHEMA, Config, make
from score_flow.process import grid


def check_components(config: Config) -> Config:
    """The config with the arguments of every plug-in as the types of its `build`; no file is read, no data opened.

    Raises UserError for a wrong name, type or value in any section, whether or not the mode at hand needs it.
    """
    sections = {key: field for key, field in SCHEMA.items() if isinstance(field.default, Component)}
    values = values_of(config)
    found = {
        key: check(field.metadata["limits"].among, values[key], f"config.{key}") for key, field in sections.items()
    }
    config = make(values | found)
    build_sampler(config)  # what depends on two arguments
    grid.choose("config.eval.solver.grid", config.eval.solver.grid)
    return config
