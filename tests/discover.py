"""What is in the directories: tests are parametrised over it, so that a new file is tested without being listed."""

import importlib

from score_flow.build import available


def builds(package: str) -> dict:
    """name -> build of every plug-in of a package."""
    return {name: importlib.import_module(f"{package}.{name}").build for name in available(package)}
