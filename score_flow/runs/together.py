"""What the processes of a run have in common before they work: the command, and the disk on which its workdir lies."""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

import jax

from score_flow.config.loading import flatten
from score_flow.config.options import Config
from score_flow.errors import UserError
from score_flow.runs.files import cannot_write
from score_flow.runs.processes import decided, gathered, is_main

PATIENCE = 15.0  # seconds in which a shared disk shows what another machine wrote there
OWN = ("data.source.path",)  # settings that may differ: a machine may have a copy of the data


def refuse_unshared(folder: str) -> None:
    """Raise UserError, on all processes, unless each sees what the main one writes in a folder; nothing of it stays.

    An object store is the same one from everywhere.
    """
    if jax.process_count() == 1:
        return
    name = f"process {jax.process_index()} ({os.getpid()} on {socket.gethostname()})"
    named = gathered("workdir", lambda: [name, folder])
    for other, path in named:
        if path != folder:
            raise UserError(f"--workdir is {folder} for {name} and {path} for {other}: give all the same one.")
    if "://" in folder:
        return
    made: list[Path] = []
    try:
        token = decided("token", lambda: str(_written(Path(folder), made)))
        seen = gathered("token seen", lambda: _seen(Path(token)))
    finally:
        for path in made:  # the newest first; a folder into which somebody else has written stays
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
    blind = [other for (other, _), sees in zip(named, seen, strict=True) if not sees]
    if blind:
        more = f" and {len(blind) - 1} more" if len(blind) > 1 else ""
        raise UserError(
            f"--workdir={folder} is not on a disk that all processes share: {blind[0]}{more} does not see what "
            f"{named[0][0]} wrote there."
        )


def same_config(mode: str, read: Callable[[], Config]) -> Config:
    """Return the config that `read` makes; raises UserError, on all processes, where one was given another command."""
    kept: list[Config] = []

    def asked() -> dict[str, str]:
        kept.append(read())
        settings = {name: repr(value) for name, value in flatten(kept[0].to_dict()).items() if name not in OWN}
        return {"--mode": mode} | settings

    first, *others = gathered("command", asked)
    for number, other in enumerate(others, 1):
        for name in first | other:
            here, there = first.get(name, "absent"), other.get(name, "absent")
            if here != there:
                raise UserError(f"{name} is {here} for process 0 and {there} for process {number}: give all the same.")
    return kept[0]


def _written(folder: Path, made: list[Path]) -> Path:
    """Write a file that nobody else has, and note it and the folders that were made for it, the newest first."""
    token = folder / f".shared-{secrets.token_hex(8)}"
    try:
        for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
            path.mkdir(exist_ok=True)
            made.insert(0, path)
        token.touch()
    except OSError as error:
        raise cannot_write(folder, error) from error
    made.insert(0, token)
    return token


def _seen(token: Path) -> bool:
    """Say whether a file is there, at the latest in a while: a network's disk may remember that it was not."""
    until = time.monotonic() + PATIENCE
    while not token.exists():
        if is_main() or time.monotonic() > until:
            return False
        for folder in token.parents:
            with contextlib.suppress(OSError):
                os.listdir(folder)  # asks the disk anew
        time.sleep(0.2)
    return True
