"""What is read in the file of a plug-in is what its import says."""

import inspect

import pytest

from score_flow.config import registries, signatures
from score_flow.config.hints import arguments_of, described, hint_of
from score_flow.config.registries import Registry
from score_flow.config.signatures import Unread
from score_flow.data import images

REGISTRIES = {name: each for name, each in vars(registries).items() if isinstance(each, Registry)}
# Their rows are no builds of a section: what a config names of them are the names alone.
NAMED = {"PREDICTIONS", "GRIDS", "WEIGHTINGS", "METHODS", "STEP_CONTROLS", "LOSSES", "JOBS", "PROJECTS"}


def told(build) -> list[tuple[str, str, object]]:
    return [(name, described(hint_of(each)), each.default) for name, each in arguments_of(build).items()]


@pytest.mark.parametrize("kind", sorted(REGISTRIES.keys() - NAMED))
def test_every_plug_in_is_read_as_it_is(kind):
    for name in REGISTRIES[kind].names():
        read, loaded = signatures.entry(REGISTRIES[kind], name, name), REGISTRIES[kind].entry(name, name)
        assert told(read) == told(loaded) and inspect.getdoc(read) == inspect.getdoc(loaded), name


@pytest.mark.parametrize(
    "text",
    [
        "def build(a: float = np.pi): ...",
        "def build(a: float = 2 * np.pi): ...",
        "import functools\n@functools.cache\ndef build(a: int = 1): ...",
        "def other(f):\n    return f\n@other\ndef build(a: int = 1): ...",
        "class build:\n    def __init__(self, a: int = 1): ...",
        "from score_flow.config.limits import Limits\ndef build(a: Annotated[int, Limits(most=np.pi)] = 1): ...",
        "def build(a: np.ndarray | None = None): ...",
        "from somewhere import anything as build",
        "build = lambda: 0\nbuild = lambda a: 0",
        "try:\n    build = 1\nexcept ImportError:\n    build = 2",
    ],
)
def test_what_only_an_import_says_is_not_guessed(text, tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "plug_in.py").write_text("from typing import Annotated\nimport numpy as np\n" + text)
    monkeypatch.setattr(signatures, "ROOT", tmp_path)
    with pytest.raises(Unread):
        signatures.entry(Registry("own"), "plug_in", "here")


def test_the_limit_of_pixels_is_the_librarys():
    assert images.MOST_PIXELS == images.Image.MAX_IMAGE_PIXELS
