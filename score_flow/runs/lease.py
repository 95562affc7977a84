"""The lock of a folder on an object store: a lease, which its holder renews.

A store has no locks that go with their holder, but it can write an object only if there is none. Leases are numbered
objects, .leases/00000001 and so on, and the highest one holds, until it says that it is free, or does not change for
STALE seconds while another watches: no clock of another machine is looked at. Who takes over creates the next number;
the highest is never removed, so that of several who try at once one succeeds.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from score_flow.errors import UserError
from score_flow.runs import stores
from score_flow.runs.files import cannot_write

LOCK = ".leases"
RENEW, STALE, LOOK = 5.0, 60.0, 1.0  # seconds
EXIT_TAKEN = 2


@contextlib.contextmanager
def held(folder: epath.Path, what: str) -> Iterator[None]:
    """Hold a folder against another `what`; raises UserError that names the holder, or what the store answers."""
    leases, me = folder / LOCK, _who()
    try:
        number = _take(leases, me, f"{folder} is in use by another {what}")
    except OSError as error:
        raise cannot_write(folder, error) from error
    done = threading.Event()
    renewing = threading.Thread(target=_renew, args=(leases, number, me, done), name="lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        with contextlib.suppress(OSError):  # whoever comes next waits until it is stale
            stores.put(_named(leases, number), _written(me | {"free": True}))


def _take(leases: epath.Path, me: dict[str, Any], refusal: str) -> int:
    """Return the number of the lease that is ours now; waits while the holder may be gone."""
    seen: tuple[int, dict] | None = None
    since = time.monotonic()
    while True:
        number, holder = found = _newest(leases)
        if number and not holder.get("free") and not _is_gone(holder):
            if seen is None:
                seen, since = found, time.monotonic()
                print(f"{leases.parent}: watching whether {_said(holder)} still holds it", flush=True)
            elif seen != found:
                raise UserError(f"{refusal} ({_said(holder)}).")
            if time.monotonic() - since < STALE:
                time.sleep(LOOK)
                continue
            print(f"{leases.parent}: {_said(holder)} has not been heard of for {STALE:g} s; going on", flush=True)
        if stores.create(_named(leases, number + 1), _written(me)) and _newest(leases) == (number + 1, me):
            for name in stores.listed(leases):
                if name.isdecimal() and int(name) <= number:
                    stores.remove(leases / name)
            return number + 1
        seen = None


def _renew(leases: epath.Path, number: int, me: dict[str, Any], done: threading.Event) -> None:
    """Change the lease again and again; ends this process where another has taken it meanwhile."""
    count = 0
    while not done.wait(RENEW):
        with contextlib.suppress(OSError, ValueError):  # no answer, or half of one: what is saved next will say so
            newest, holder = _newest(leases)
            if newest > number:
                os.write(2, f"\nerror: {leases.parent} was taken over meanwhile by {_said(holder)}.\n".encode())
                os._exit(EXIT_TAKEN)
            count += 1
            stores.put(_named(leases, number), _written(me | {"renewed": count}))


def _newest(leases: epath.Path) -> tuple[int, dict[str, Any]]:
    """Return the highest lease and what it says; 0 where there is none."""
    while number := max((int(name) for name in stores.listed(leases) if name.isdecimal()), default=0):
        with contextlib.suppress(FileNotFoundError):  # it was the highest, and is no longer
            return number, json.loads(stores.get(_named(leases, number)))
    return 0, {}


def _named(leases: epath.Path, number: int) -> epath.Path:
    return leases / f"{number:08d}"


def _written(holder: dict[str, Any]) -> bytes:
    return json.dumps(holder).encode()


def _who() -> dict[str, Any]:
    return {
        "host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": _machine(),
    }  # fmt: skip


def _said(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def _machine() -> str:
    """Name what this process is one of: a running kernel, and the numbering of processes in it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_gone(holder: dict[str, Any]) -> bool:
    """Say whether a holder was of this machine and is no longer: killed, and started again here."""
    if not _machine() or holder.get("machine") != _machine():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, ValueError, TypeError):
        return False
    return False
