"""Where a run comes from: the code, the command and the machine of each start, a line each in runs.jsonl."""

import datetime
import importlib.metadata
import json
import platform
import shlex
import socket
import subprocess
import sys
from typing import Any

import jax

from score_flow import __version__
from score_flow.config.registries import ROOT
from score_flow.runs.files import write_whole
from score_flow.runs.places import Place, read
from score_flow.runs.processes import is_main
from score_flow.runs.progress import read_lines

FILE = "runs.jsonl"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")  # what a result may depend on


def append(workdir: Place, step: int) -> None:
    """Add a line for this start, from a step on; of the environment it says nothing. Raises UserError."""
    if not is_main():
        return
    file = workdir / FILE
    before = read(file) if file.exists() else b""
    before += b"\n" if before and not before.endswith(b"\n") else b""
    write_whole(file, before + json.dumps({"step": step} | facts()).encode() + b"\n")


def starts(workdir: Place) -> list[dict[str, Any]]:
    """Read the lines; what is none is passed over."""
    return read_lines(workdir / FILE)


def facts() -> dict[str, Any]:
    """Return what is known of this start; no commit where the code is in no checkout, or git is not there."""
    devices = jax.devices()
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        **commit(),
        "version": __version__,
        "host": socket.gethostname(),
        "system": platform.platform(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "processes": jax.process_count(),
        "packages": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def commit(folder: str = str(ROOT)) -> dict[str, Any]:
    """{"commit": its hash, "changes": whether Python files differ from it} of a checkout, {} where there is none."""
    if _git(folder, "ls-files", "--error-unmatch", "score_flow/types.py") is None:  # some other project's, around ours
        return {}
    head, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--", "*.py")
    return {"commit": head.strip(), "changes": bool(changed)} if head and changed is not None else {}


def _git(folder: str, *arguments: str) -> str | None:
    try:
        command = ["git", "--no-optional-locks", "-C", folder, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
