"""Eight devices on one CPU, shapes checked at run time, and no word from TensorFlow."""

import os

from tests.compiler import FAST, taken

# Before jax starts: the flags are read once. Most of the time of these tests is compilation of small programs: compile
# fast rather than well. The workers of a run inherit what its first process found.
os.environ["JAX_PLATFORMS"] = "cpu"
if "PYTEST_XDIST_WORKER" not in os.environ:
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", *taken(FAST)]
    os.environ["XLA_FLAGS"] = " ".join(flags)

import gc
import sys

import jax
import pytest
from jaxtyping import install_import_hook

# Eight devices share two threads: programs in flight together can wait for each other in a collective for ever.
jax.config.update("jax_cpu_enable_async_dispatch", False)
install_import_hook(["score_flow", "sampling", "evaluation"], "beartype.beartype")


# Two workers take a file each: the longest go first, or one worker waits for the other's last.
FIRST = (
    "test_resume.py", "test_resume_evaluation.py", "test_docs.py", "test_install.py", "test_plugins.py", "test_face.py"
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Long files first, the others in their order."""
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish():
    """What is loaded by now stays: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """No file uses the programs of another; thousands of them take gigabytes, which every collection goes through.

    Nor its my_lab, the package of one's own that some of them write.
    """
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_lab"]:
        del sys.modules[name]
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the processes of a file keep what they compiled."""
    return tmp_path_factory.mktemp("compiled")
