"""Who gives a path to another data set than the one that reads it is told its name, in the same line."""

import importlib
import re

import pytest

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data import kinds
from score_flow.errors import UserError
from tests.data.test_sources import sample_of
from tests.data.writers import refusal

NAMES = ("archive", "arrays", "cifar10", "cifar100", "folder", "latents", "mnist", "packed", "parquet", "tfrecord")


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_is_told_and_opened_by_what_is_told(name, tmp_path):
    """By its own layout: the sample that its tests read."""
    (folder := tmp_path / "d").mkdir()
    fields = sample_of(name)(folder)
    assert next(iter(kinds.sources_of(folder))) == name
    other = "arrays" if name != "arrays" else "folder"
    flags = [f"--config.data.source.name={other}", f"--config.data.source.path={fields['path']}"]
    message = refusal(lambda: experiment(load("configs/digits.py", flags)))
    assert re.search(rf"\. This looks like .*: --config\.data\.source\.name={name}$", message)
    importlib.import_module(f"score_flow.data.{name}").build(**fields)


def test_no_hint_where_the_name_is_right_or_nothing_is_known(tmp_path):
    error = UserError("x")
    sample_of("folder")(tmp_path)
    (tmp_path / "more.zip").write_bytes(b"")
    assert kinds.with_hint(error, "folder", str(tmp_path)) is error
    for path in ("", None, str(tmp_path / "gone"), "a\0b", 3):
        assert kinds.with_hint(error, "folder", path) is error
    assert "an image: give its folder" in str(kinds.with_hint(error, "arrays", str(next(tmp_path.rglob("*.png")))))
