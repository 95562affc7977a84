"""Eight devices on one CPU, shapes checked at run time, and no word from TensorFlow."""

import os

from tests.compiler import FAST, taken

# Before jax starts: the flags are read once. Most of the time of these tests is compilation of small programs: compile
# fast rather than well. The workers of a run inherit what its first process found.
os.environ["JAX_PLATFORMS"] = "cpu"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # no test depends on what another run compiled
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
if "PYTEST_XDIST_WORKER" not in os.environ:
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", *taken(FAST)]
    os.environ["XLA_FLAGS"] = " ".join(flags)

import gc
import itertools
import sys
from pathlib import Path

import jax
import pytest
from beartype import BeartypeConf
from beartype.claw import beartype_package
from jaxtyping import install_import_hook

# Eight devices share two threads: programs in flight together can wait for each other in a collective for ever.
jax.config.update("jax_cpu_enable_async_dispatch", False)

# Types are checked everywhere, and shapes, which costs more, everywhere but in the config, which has no arrays. (Of its
# hints beartype alone would check a function inside another, too, before that gives its own answer.)
files = (Path(__file__).parents[1] / "score_flow").iterdir()
shaped = [f"score_flow.{file.stem}" for file in files if file.stem not in ("config", "__init__", "__pycache__")]
beartype_package("score_flow.config", conf=BeartypeConf(claw_is_pep526=False))
install_import_hook([*shaped, "score_flow.config.hints", "sampling", "evaluation"], "beartype.beartype")


# Two workers take a file each: the longest go first, or one worker waits for the other's last.
FIRST = (
    "test_resume.py", "test_docs.py", "test_networks.py", "test_orders.py", "test_refusals.py", "test_plugins.py",
    "test_face.py", "test_samplers.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Long files first, the others in their order."""
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish():
    """What is loaded by now stays, and most of what tracing makes: the collector need not look again and again."""
    gc.set_threshold(50_000)
    gc.collect()
    gc.freeze()


FILES = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """A few files share what jax compiled of small operations; all programs of all files would take too many gigabytes.

    No file uses my_lab of another, the package of one's own that some of them write.
    """
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]
    if next(FILES) % 8 == 0:
        jax.clear_caches()
        gc.unfreeze()
        gc.collect()
    gc.freeze()  # what is kept the collector need not look at


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Where the processes that tests start keep what they compiled."""
    return tmp_path_factory.mktemp("compiled")
