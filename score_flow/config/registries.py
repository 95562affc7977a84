"""The map of what can be added: each registry is a folder whose files are its entries, or a table of one file.

Nothing is imported before an entry is asked for, so that this file may name rooms above its own.
"""

import ast
import dataclasses
import functools
import importlib
import pkgutil
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from score_flow.errors import UserError, check_choice, nearest, one_line

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Registry:
    """The plug-ins of one kind.

    package: the folder whose files they are, or, with `table`, the module that has them in a dict of that name.
    exports: what a file is one by: the name that it binds.
    """

    package: str
    table: str = ""
    exports: str = "build"

    @property
    def place(self) -> str:
        """The folder or the file, as a person looks for it."""
        return self.package.replace(".", "/") + (".py" if self.table else "/")

    def names(self) -> tuple[str, ...]:
        """The entries of this project, sorted where they are files; read without importing one."""
        return _rows(self.place, self.table) if self.table else _files(self.place, self.exports)

    def entry(self, name: str, where: str) -> Any:
        """What the file, or the row, of a name holds; raises UserError where there is none.

        A name with a dot is one of another package: a module that exports the same, or, for a table, module.attribute.
        """
        if "." in name:
            return self._foreign(name, where)
        check_choice(where, name, self.names())
        if self.table:
            return getattr(importlib.import_module(self.package), self.table)[name]
        return getattr(importlib.import_module(f"{self.package}.{name}"), self.exports)

    def beside(self, name: str, what: str, where: str) -> Any:
        """What the file of a plug-in exports besides; None where it does not."""
        self.entry(name, where)
        return getattr(sys.modules[name if "." in name else f"{self.package}.{name}"], what, None)

    def _foreign(self, name: str, where: str) -> Any:
        module, attribute = name.rsplit(".", 1) if self.table else (name, self.exports)
        found = _of_another_package(module, f"{where} is {name!r}", self.names())
        if not hasattr(found, attribute):
            near = nearest(attribute, vars(found)) if self.table else ""
            raise UserError(f"{where} is {name!r}; {module} has no {attribute}, which it is to export.{near}")
        return getattr(found, attribute)


def _of_another_package(module: str, what: str, names: tuple[str, ...]) -> ModuleType:
    """A module of whoever uses this program; raises UserError, which begins with `what`, where it cannot be had."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{what}, which is no name of a module; without a dot: {', '.join(names)}.")
    # At the end: a file of the folder that one works in hides no library.
    sys.path += [] if "" in sys.path else [""]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # it is there, and what it imports is not
            raise UserError(f"{what}; {_line_of(error)}{one_line(error)}") from error
        package, _, last = (error.name or module).rpartition(".")
        if not package:
            raise UserError(
                f"{what}; there is no package {last}: install it, or start where its folder lies. "
                f"Without a dot: {', '.join(names)}."
            ) from error
        there = sorted(found.name for found in pkgutil.iter_modules(getattr(sys.modules[package], "__path__", [])))
        raise UserError(
            f"{what}; {package} has no module {last}, but: {', '.join(there) or 'none'}.{nearest(last, there)}"
        ) from error
    except Exception as error:
        raise UserError(f"{what}; {_line_of(error)}{one_line(error)}") from error


def _line_of(error: Exception) -> str:
    """"file, line n: " of the outermost line of another package at which an error arose."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return "".join(f"{frame.filename}, line {frame.lineno}: " for frame in frames[1:2])


def _files(folder: str, exports: str) -> tuple[str, ...]:
    exporting = re.compile(rf"^({exports}\s*=|def {exports}\b|class {exports}\b)", re.MULTILINE)
    return tuple(sorted(f.stem for f in (ROOT / folder).glob("*.py") if exporting.search(f.read_text())))


@functools.cache
def _rows(file: str, table: str) -> tuple[str, ...]:
    for node in ast.parse((ROOT / file).read_text()).body:
        names = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(name, ast.Name) and name.id == table for name in names):
            return tuple(key.value for key in node.value.keys)
    raise LookupError(f"no table {table} in {file}")


PATHS = Registry("score_flow.paths")
PREDICTIONS = Registry("score_flow.process.prediction", "PREDICTIONS")
GRIDS = Registry("score_flow.process.grid", "GRIDS")
TIME_SAMPLERS = Registry("score_flow.process.times", "TIME_SAMPLERS")
NETWORKS = Registry("score_flow.networks")
CLASSIFIERS = Registry("score_flow.networks.classifier", "NETWORKS")
DEQUANTISERS = Registry("score_flow.networks.flowpp", "DEQUANTISERS")
SOURCES = Registry("score_flow.data")
LOSSES = Registry("score_flow.losses")
LOGGERS = Registry("score_flow.training.loggers")
WEIGHTINGS = Registry("score_flow.losses.weightings", "WEIGHTINGS")
PROJECTS = Registry("score_flow.pretrained.projects")
SAMPLERS = Registry("sampling")
METHODS = Registry("sampling.flow", "METHODS")
STEP_CONTROLS = Registry("sampling.flow", "CONTROLS")
PREDICTORS = Registry("sampling.kernels", exports="predictor")
CORRECTORS = Registry("sampling.kernels", exports="corrector")
CONTROLS = Registry("sampling.control")
JOBS = Registry("evaluation.jobs", exports="job")
EXTRACTORS = Registry("evaluation.metrics.extractors")
