"""What is in the directories: tests are parametrised over it, so that a new file is tested without being listed."""

import importlib
from collections.abc import Iterable

import pytest

from score_flow.config.registries import Registry


def builds(package: str) -> dict:
    """name -> build of every plug-in of a package."""
    return {name: importlib.import_module(f"{package}.{name}").build for name in Registry(package).names()}


def thinned(cases: Iterable, every: int) -> list:
    """Values of a parametrised test: the first of each `every` run always, the others with `make test-all`."""
    return [pytest.param(case, marks=pytest.mark.slow if i % every else ()) for i, case in enumerate(cases)]
