"""The folder of a run: made, announced, and held by one training process at a time."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from score_flow.config.options import Config
from score_flow.errors import UserError
from score_flow.runs import lease
from score_flow.runs.files import cannot_write, write_whole
from score_flow.runs.places import Place, on_store, resolved
from score_flow.runs.processes import decided, is_main

LOCK = ".lock"


@contextlib.contextmanager
def workdir(folder: str | Place, exclusive: bool) -> Iterator[Place]:
    """Make the folder of a run, print it, and, if exclusive, refuse it to a second run.

    What is refused inside leaves nothing behind: neither the folder, if it was not there before, nor the lock.
    """
    path = resolved(folder)
    with held(path, "run") if exclusive else contextlib.nullcontext():
        if is_main():
            print(f"run directory: {path}", flush=True)
        yield path


@contextlib.contextmanager
def held(folder: Place, what: str) -> Iterator[None]:
    """Hold a folder as `hold` does, by the main process for all; raises UserError on all of them."""
    with contextlib.ExitStack() as stack:
        decided(f"{what} in {folder}", lambda: stack.enter_context(hold(folder, what)))
        yield


def hold(folder: Place, what: str) -> contextlib.AbstractContextManager[None]:
    """Hold a folder against another `what`, making it; raises UserError that names the holder."""
    return lease.held(folder, what) if on_store(folder) else _locked(folder, what)


@contextlib.contextmanager
def _locked(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder of a disk: the lock is the kernel's, goes with its holder however that ends, and is never stale."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / LOCK
    fresh = not lock.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(lock, "a+")  # noqa: SIM115 - held until the end
    except OSError as error:
        raise cannot_write(Path(error.filename or folder), error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(f"{folder} is in use by another {what} ({file.read().strip()}).") from error
        _sign(file, f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        try:
            yield
        except UserError:
            if fresh:
                lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a folder that is not empty stays
                for path in made:
                    path.rmdir()
            raise
        finally:
            _sign(file, "")


def write_config(folder: Place, config: Config) -> None:
    """Write the config that later commands of a run go by, once it was accepted."""
    if is_main():
        write_whole(folder / "config.json", config.to_json(indent=1) + "\n")


def _sign(file, holder: str) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        file.seek(0)
        file.truncate(0)
        file.write(holder)
        file.flush()
