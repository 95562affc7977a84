"""Samples as PNG files: on a store as on a disk, stopped and gone on with, and refused where they are no pictures."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from evaluation.jobs import pngs
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import Preempted, UserError
from score_flow.runs.files import write_arrays
from score_flow.runs.places import place_of, read
from tests import emulators

N = 11
LEVELS = np.random.default_rng(0).integers(0, 17, (N, 8, 8, 1), np.uint8)


def written(folder):
    return {file.name: np.asarray(Image.open(io.BytesIO(read(file)))) for file in folder.glob("*.png")}


def test_stopped_and_gone_on(tmp_path, monkeypatch):
    """After two of its parts: what is there stays, the rest comes; levels are spread over 0 .. 255."""
    archive, folder, looks = tmp_path / "samples.npz", tmp_path / "png", iter([False, False, True])
    np.savez(archive, image=LEVELS)
    monkeypatch.setattr(pngs, "AT_ONCE", 4)
    with monkeypatch.context() as patch, pytest.raises(Preempted, match="stopped with 3 files of .*png to write"):
        patch.setattr(pngs.Preemption, "agreed", lambda self: next(looks))
        pngs.write(archive, folder, 17)
    assert len(written(folder)) == 8
    pngs.write(archive, folder, 17)
    found = written(folder)
    assert sorted(found) == [f"{i:06d}.png" for i in range(N)]
    for i in range(N):
        np.testing.assert_array_equal(found[f"{i:06d}.png"], np.rint(LEVELS[i, ..., 0] * (255 / 16)))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_on_a_store(scheme):
    if missing := emulators.missing(scheme):
        pytest.skip(f"not installed: {missing}")
    with emulators.here(scheme):
        folder = place_of(f"{scheme}://{emulators.BUCKET}/run")
        write_arrays(folder / "samples.npz", image=LEVELS, label=np.arange(N))
        pngs.write(folder / "samples.npz", folder / "png", 17)
        found = written(folder / "png")
        assert sorted(found) == [f"{i:06d}_label{i}.png" for i in range(N)]
        np.testing.assert_array_equal(found["000010_label10.png"], np.rint(LEVELS[10, ..., 0] * (255 / 16)))


def test_no_pictures():
    run = experiment(load("configs/digits.py", []))
    pngs.refuse_unfit(run)
    other = dataclasses.replace(run)
    object.__setattr__(other, "pixel_shape", (8, 8, 2))
    with pytest.raises(UserError, match="save_png is True, but images have 2 channels; allowed: 1, 3"):
        pngs.refuse_unfit(other)
