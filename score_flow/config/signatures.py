"""Signatures of plug-ins, read in their files: --help says what each takes, and waits for no library to load.

Of a file, what annotations and defaults name is worked out, and only that: no body of a function is run. What cannot
be known so raises Unread; such a plug-in has to be imported.
"""

import ast
import copy
import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from score_flow.config.hints import arguments_of, described, hint_of
from score_flow.config.registries import ROOT, Registry

GROUND = ("score_flow.config", "score_flow.errors")  # what of our own loads no library, and is imported


class Unread(Exception):
    """A file says something in a way that only its import makes known."""


class Foreign:
    """What another library has: it may stand in an annotation, and nothing else is known of it."""

    def _itself(self, *others: Any) -> "Foreign":
        return self

    __call__ = __getitem__ = __or__ = __ror__ = _itself

    def __getattr__(self, name: str) -> "Foreign":
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __repr__(self) -> str:
        raise Unread("a value of another library")

    __str__ = __bool__ = __iter__ = __repr__


class File:
    """A file of ours; its attributes are what it binds, each worked out when it is asked for."""

    def __init__(self, module: str):
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        self._bound, self.__name__ = {}, module
        for name, node in ((name, each) for each in tree.body for name in _bound_by(each)):
            self._bound[name] = None if name in self._bound else node  # None: bound twice

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name not in self._bound:
            raise AttributeError(name)
        match self._bound[name]:
            case None:
                raise Unread(f"{name} is bound twice")
            case ast.ImportFrom(module=module, names=names):
                found = _of_module(module, next(each.name for each in names if name in (each.asname, each.name)))
            case ast.Import():
                found = importlib.import_module(name) if name in sys.stdlib_module_names else Foreign()
            case ast.FunctionDef() as node:
                found = self._head(node)
            case ast.ClassDef() as node:
                found = self._fields(node)
            case node:
                found = self._value(node.value)
        setattr(self, name, found)
        return found

    def _head(self, node: ast.FunctionDef) -> Callable:
        """A function without its body."""
        if not all(getattr(self._value(each), "__module__", "").startswith(GROUND) for each in node.decorator_list):
            raise Unread(f"{node.name} is decorated")
        head = copy.copy(node)
        head.body, head.returns = [*_docstring(node), ast.Pass()], None
        return self._made(head)

    def _fields(self, node: ast.ClassDef) -> type:
        """A class as a dataclass of its fields: what paths, flax's modules and equinox's are."""
        if any(isinstance(each, ast.FunctionDef) and each.name == "__init__" for each in node.body):
            raise Unread(f"{node.name} has an __init__")
        made = copy.copy(node)
        made.bases = [base for base in node.bases if not isinstance(self._value(base), Foreign)]
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        made.body, made.decorator_list, made.keywords = [*_docstring(node), *fields, ast.Pass()], [], []
        found = self._made(made)
        return found if issubclass(found, tuple) else dataclasses.dataclass(found)

    def _value(self, node: ast.expr) -> Any:
        self._know(node)
        return eval(compile(ast.Expression(node), self.__name__, "eval"), vars(self))

    def _made(self, node: ast.stmt) -> Any:
        self._know(node)
        made = {}
        exec(compile(ast.fix_missing_locations(ast.Module([node], [])), self.__name__, "exec"), vars(self), made)
        return made[node.name]

    def _know(self, node: ast.AST) -> None:
        """Work out the names that are in a piece of the file."""
        for each in ast.walk(node):
            if isinstance(each, ast.Name) and each.id in self._bound:
                getattr(self, each.id)


file_of = functools.cache(File)


def _bound_by(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            yield from (each.asname or each.name for each in names)
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            yield name


def _docstring(node: ast.FunctionDef | ast.ClassDef) -> list[ast.stmt]:
    return node.body[:1] if ast.get_docstring(node) is not None else []


def _of_module(module: str, name: str) -> Any:
    """What a module has, or the module of that name in it."""
    within = f"{module}.{name}"
    if within.startswith(GROUND) or module.partition(".")[0] in sys.stdlib_module_names:
        found = importlib.import_module(module)
        return getattr(found, name) if hasattr(found, name) else importlib.import_module(within)
    if (ROOT / f"{within.replace('.', '/')}.py").is_file():
        return file_of(within)
    return getattr(file_of(module), name) if (ROOT / f"{module.replace('.', '/')}.py").is_file() else Foreign()


def entry(registry: Registry, name: str, where: str) -> Any:
    """What has the signature and docstring of what `Registry.entry` returns; raises Unread."""
    try:
        module = file_of(registry.package if registry.table else f"{registry.package}.{name}")
        found = getattr(module, registry.table)[name] if registry.table else getattr(module, registry.exports)
        for parameter in arguments_of(found).values():  # of what is not known, nothing can be said
            f"{described(hint_of(parameter))} {parameter.default!r}"
    except Exception as error:  # to evaluate what a file says may raise anything
        raise Unread(f"{where}: {name} has to be imported") from error
    return found
