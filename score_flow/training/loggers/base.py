"""What a logger is: a service that is told of a run, besides metrics.jsonl, by the main process alone."""

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from score_flow.errors import UserError


class About(NamedTuple):
    """What a service is told of a run when it starts, or goes on."""

    id: str  # kept in the workdir: the same after an interruption
    name: str  # of the workdir
    config: dict[str, Any]
    folder: Path  # of this machine, for files of the service's own


@runtime_checkable
class Logger(Protocol):
    """A service. Each method may raise what it likes: training says it once and goes on."""

    def start(self, about: About) -> None:
        """Begin a run, or go on with the one of this id."""

    def log(self, step: int, row: dict[str, float]) -> None:
        """Tell a row of metrics.jsonl."""

    def picture(self, step: int, name: str, file: Path) -> None:
        """Show a picture, a file of this machine."""

    def finish(self) -> None:
        """Send what is not sent yet."""


def refuse_missing(package: str) -> None:
    """Raise UserError unless a service's package is installed; it is not imported."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{package} is not installed: pip install {package}, or training.logger.name = none.")
