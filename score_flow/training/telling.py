"""Telling a service of a run (config.training.logger), such that nothing which the service does can harm training."""

import json
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from score_flow.config.components import resolve
from score_flow.config.options import Config
from score_flow.config.registries import LOGGERS
from score_flow.errors import one_line
from score_flow.runs.files import json_at, write_json
from score_flow.runs.places import Place, local, on_store
from score_flow.runs.processes import decided, is_main
from score_flow.training.faults import warn
from score_flow.training.loggers.base import About, Logger

FILE = "logger.json"  # of a workdir: the id of its run
SHARE = 0.05  # of the time that a service which fails may take


class Told:
    """A service, or none, of which training need not know: what it raises is said once, and it is let alone a while.

    Raises UserError, on all processes, for a service that is not installed. `start` begins.
    """

    def __init__(self, config: Config, workdir: Place):
        self._config, self._workdir, self._logger = config, workdir, None
        self._warned, self._next = False, 0.0

        def build() -> None:
            self._logger: Logger | None = resolve(LOGGERS, config.training.logger, "config.training.logger")

        decided("logger", lambda: build() if is_main() else None)

    def start(self) -> None:
        """Have the service begin the run of this workdir, or go on with it."""
        if self._logger is None:
            return
        here = Path(tempfile.mkdtemp(prefix="score_flow-")) if on_store(self._workdir) else self._workdir
        config = json.loads(self._config.to_json())
        about = About(_id_of(self._workdir), self._workdir.name, config, here)
        if not self._tried(lambda: self._logger.start(about)):
            self._logger = None  # of a run that did not begin nothing can be told

    def row(self, step: int, values: dict[str, float]) -> None:
        """Tell a row of metrics.jsonl."""
        if self._logger is not None:
            self._tried(lambda: self._logger.log(step, values))

    def picture(self, step: int, name: str, file: Place | None) -> None:
        """Show a picture that was drawn, if it was."""
        if self._logger is not None and file is not None:
            self._tried(lambda: self._logger.picture(step, name, local(file)))

    def close(self) -> None:
        if self._logger is not None:
            self._next = 0.0
            self._tried(self._logger.finish)

    def _tried(self, call: Callable[[], None]) -> bool:
        """Say whether a call went well."""
        began = time.monotonic()
        if began < self._next:
            return False
        try:
            call()
            return True
        except Exception as error:
            self._next = time.monotonic() + (time.monotonic() - began) / SHARE
            if not self._warned:
                self._warned = True
                warn(
                    f"{self._config.training.logger.name} cannot be told of this run ({one_line(error)}): training "
                    "goes on, and metrics.jsonl has every row."
                )
            return False


def _id_of(workdir: Place) -> str:
    """Return the id of a workdir's run, made when it is first asked for."""
    found = (json_at(workdir / FILE) or {}).get("id")
    if not isinstance(found, str):
        found = uuid.uuid4().hex[:12]
        write_json(workdir / FILE, {"id": found})
    return found
