"""What a config says of plug-ins, all of them checked before anything is opened."""

from score_flow.config.components import Component, check
from score_flow.config.loading import values_of
from score_flow.config.options import SCHEMA, Config, make


def check_arguments(config: Config) -> Config:
    """The config with the arguments of every plug-in as the types of its `build`; no library is loaded for it.

    Raises UserError for a wrong name, type or value in any section, whether or not the mode at hand needs it.
    """
    sections = {key: field for key, field in SCHEMA.items() if isinstance(field.default, Component)}
    values = values_of(config)
    found = {
        key: check(field.metadata["limits"].among, values[key], f"config.{key}") for key, field in sections.items()
    }
    return make(values | found)


def check_components(config: Config) -> Config:
    """The same, and what depends on two arguments; no file is read, no data opened."""
    from sampling.building import build_sampler
    from score_flow.process import grid

    config = check_arguments(config)
    build_sampler(config)
    grid.choose("config.eval.solver.grid", config.eval.solver.grid)
    return config
