"""Checkpoints that the tests of this room read, or damage."""

import shutil

import pytest

from tests.states import write


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
