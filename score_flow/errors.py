"""The three errors that end a run, and how they are said: the ground of all rooms, which loads no library."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that the person can mend (a flag, a file, a folder): one line and exit code 2."""


class NonFinite(ArithmeticError):
    """A loss, a gradient or a result was not finite; nothing later was saved. Exit code 3."""


class Preempted(Exception):
    """The run was asked to stop; its state is saved and the same command goes on from there. Exit code 75."""


def check_choice(what: str, got: object, allowed: Iterable[str | int]) -> None:
    """Raise a UserError that names the choices and the nearest one, unless `got` is one of `allowed`."""
    names = sorted(allowed)
    if got not in names:
        names = [str(name) or "'' (none)" for name in names]
        raise UserError(f"{what} is {got!r}; allowed: {', '.join(names)}.{nearest(str(got), names)}")


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """ " Did you mean 'x'?", of the nearest of some names; nothing where none is near (likeness below the cutoff)."""
    near = difflib.get_close_matches(name, list(names), 1, cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def printable(name: str, most: int = 60) -> str:
    """Return a name from foreign bytes as it may be shown: in one line, and not for ever."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in name[:most])
    return shown + "..." * (len(name) > most)


def one_line(error: Exception) -> str:
    """Return the kind and the first line of an error that a library raised, for use inside a UserError."""
    return printable(f"{type(error).__name__}: {error}".splitlines()[0], 300)
