"""The folder of a run: made, announced, and held by one training process at a time."""

import fcntl
import os
import socket
import time
from pathlib import Path

from score_flow.options import Config
from score_flow.sharding import is_main
from score_flow.types import UserError


class Workdir:
    """A context that makes the folder, prints it, and, if exclusive, refuses it to a second run.

    The lock is the kernel's: it goes with its holder however that ends, so none is ever stale.
    """

    def __init__(self, folder: str, config: Config, exclusive: bool):
        self._path, self._config, self._exclusive, self._lock = Path(folder).resolve(), config, exclusive, None

    def __enter__(self) -> Path:
        if not is_main():
            return self._path
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            if self._exclusive:
                self._hold()
                (self._path / "config.json").write_text(self._config.to_json(indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write to --workdir {self._path}: {error.strerror or error}.") from error
        print(f"run directory: {self._path}", flush=True)
        return self._path

    def __exit__(self, *exception) -> None:
        if self._lock is not None:
            self._lock.close()

    def _hold(self) -> None:
        self._lock = open(self._path / ".lock", "a+")  # noqa: SIM115 - held until __exit__
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.seek(0)
            raise UserError(f"{self._path} is in use by another run ({self._lock.read().strip()}).") from error
        self._lock.truncate(0)
        self._lock.write(
            f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        self._lock.flush()
