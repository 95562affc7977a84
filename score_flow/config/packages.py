"""Plug-ins from Python: in a package of plug-ins a file can be called, score_flow.paths.gvp() is its build()."""

import importlib
import inspect
import pkgutil
import sys
from types import ModuleType
from typing import Any

from score_flow.config.registries import Registry
from score_flow.errors import nearest


class PlugIn(ModuleType):
    """The module of a plug-in; called, it is its `build`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.build(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.build)


class Package(ModuleType):
    """A package that loads its files when they are asked for, and makes plug-ins of those that export `build`."""

    def __getattr__(self, name: str) -> ModuleType:
        """A file that is not loaded yet."""
        wanted = f"{self.__name__}.{name}"
        try:
            if not name.startswith("_"):
                return importlib.import_module(wanted)
        except ModuleNotFoundError as error:
            if error.name != wanted:  # the file is there, and what it imports is not
                raise
        names = _names(self)
        raise AttributeError(
            f"{self.__name__} has no {name!r}; it has: {', '.join(names)}.{nearest(name, names)}", name=name, obj=self
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Python binds a file here once it is loaded, whoever imports it."""
        if type(value) is ModuleType and hasattr(value, "build"):
            value.__class__ = PlugIn
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """The plug-ins, and what else is loaded of the package."""
        inside = f"{self.__name__}."
        loaded = {name for name, value in vars(self).items() if getattr(value, "__name__", "").startswith(inside)}
        return sorted({*loaded, *_names(self), "__doc__", "__file__", "__name__", "__path__"})


def _names(package: Package) -> tuple[str, ...]:
    """What people look for in a package: files that can be called; where there are none (kernels), all files."""
    return Registry(package.__name__).names() or tuple(file.name for file in pkgutil.iter_modules(package.__path__))


def of_plug_ins(package: str) -> None:
    """Make a package one of plug-ins: for its __init__.py, which is empty otherwise."""
    sys.modules[package].__class__ = Package
