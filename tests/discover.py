"""What is in the directories: tests are parametrised over it, so that a new file is tested without being listed."""

from collections.abc import Iterable

import pytest

from score_flow.config.registries import Registry


def builds(registry: Registry | str) -> dict:
    """name -> build of every plug-in of a registry, or of a package."""
    registry = Registry(registry) if isinstance(registry, str) else registry
    return {name: registry.entry(name, registry.place) for name in registry.names()}


def thinned(cases: Iterable, every: int) -> list:
    """Values of a parametrised test: the first of each `every` run always, the others with `make test-all`."""
    return [pytest.param(case, marks=pytest.mark.slow if i % every else ()) for i, case in enumerate(cases)]
