"""What the tests of this room share: checkpoints to read or to damage, and a store of Google's on the loopback."""

import shutil

import pytest

from tests import emulators
from tests.states import write


@pytest.fixture(scope="module")
def served():
    """The variables by which other processes find the store; it is there as long as a file of tests runs."""
    with emulators.here("gs") as variables:
        yield variables


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("written") / "checkpoints"
    return directory, write(directory, 5, 10)


@pytest.fixture
def copied(written, tmp_path):
    """The folder, to damage."""
    directory, _ = written
    shutil.copytree(directory, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"
