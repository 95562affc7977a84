"""Object stores on this machine's loopback: Google's (gcs.py), and moto's S3."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import fsspec
import pytest
from etils.epath.backend import fsspec_backend

from tests import gcs

BUCKET = "bucket"
NEEDED = {"gs": ("gcsfs",), "s3": ("s3fs", "moto", "flask")}
MOTO = """
import threading
from moto.server import ThreadedMotoServer
ThreadedMotoServer("127.0.0.1", {port}).start()
threading.Event().wait()
"""


def missing(scheme: str) -> str:
    """The packages that a store of this kind lacks here."""
    return ", ".join(name for name in NEEDED[scheme] if importlib.util.find_spec(name) is None)


def environment(scheme: str, url: str) -> dict[str, str]:
    """What the clients of a store, gcsfs or s3fs and TensorStore, must know of it."""
    if scheme == "s3":
        keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}
        return keys | {"AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true"}
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # else it asks another service what kind of bucket this is
    }


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextlib.contextmanager
def here(scheme: str) -> Iterator[dict[str, str]]:
    """Serve an empty bucket to this process too."""
    with serving(scheme) as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        forget()
        yield variables
    forget()


def forget() -> None:
    """Have clients that live longer than a server be made anew."""
    fsspec_backend._get_filesystem.cache_clear()
    for scheme in NEEDED:
        with contextlib.suppress(ImportError):
            fsspec.get_filesystem_class(scheme).clear_instance_cache()


@contextlib.contextmanager
def serving(scheme: str) -> Iterator[dict[str, str]]:
    """Serve an empty bucket; yields the variables that lead there, which are not set."""
    if scheme == "gs":
        with gcs.Store() as store:
            yield environment(scheme, store.url)
            store.shutdown()
        return
    port, quiet = free_port(), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-c", MOTO.format(port=port)], **quiet)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.1)
        variables = environment(scheme, f"http://127.0.0.1:{port}")
        make = f"import s3fs; s3fs.S3FileSystem().mkdir({BUCKET!r})"
        subprocess.run([sys.executable, "-c", make], env=os.environ | variables, check=True)
        yield variables
    finally:
        server.terminate()
        server.wait()
