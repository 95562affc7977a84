"""Paths as people type them, files that are none, and images that break only when they are decoded."""

import contextlib
import os

import numpy as np
import pytest
from PIL import Image

from score_flow.data import arrays, folder, images
from score_flow.errors import UserError
from score_flow.runs import files

N = 20
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), np.uint8)


def save_images(path, n=N):
    path.mkdir(exist_ok=True)
    for i in range(n):
        Image.fromarray(IMAGES[i]).save(path / f"{i:03d}.png")


def open_folder(path, **fields):
    return folder.build(path=str(path), **({"image_size": 8} | fields))


def refusal(build, *args, **fields) -> str:
    with pytest.raises(UserError) as error:
        build(*args, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_home_and_relative_paths(tmp_path, monkeypatch):
    save_images(tmp_path / "d")
    np.savez(tmp_path / "a.npz", image=IMAGES)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for path in ("~/d", "d", "./d/../d"):
        assert open_folder(path).name == "d/train"
    assert open_folder(str(tmp_path / "d") + "/.").name == "d/train"
    for path in ("~/a.npz", "a.npz"):
        assert len(arrays.build(path=path)) == N - 2
    monkeypatch.chdir(tmp_path / "d")
    assert open_folder(".").name == "d/train"


@pytest.mark.parametrize("kind", ["pipe", "circle", "broken", "missing", "folder", "zero byte"])
def test_regular_file_never_opens_anything_else(kind, tmp_path):
    file = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind in ("circle", "broken"):
        file.symlink_to(file if kind == "circle" else tmp_path / "gone")
    given = "a\0b" if kind == "zero byte" else file
    assert refusal(files.regular_file, given, "config.eval.stats").startswith("config.eval.stats: ")
    if kind in ("pipe", "circle", "broken"):  # among images it is one that cannot be read; it does not hang
        save_images(tmp_path, 4)
        assert "x.png" in refusal(open_folder, tmp_path)
        assert open_folder(tmp_path, on_error="skip").whole.skipped == 1
    if kind == "pipe":
        file.rename(tmp_path / "train.npz")
        assert "train.npz" in refusal(arrays.build, path=str(tmp_path / "train.npz"))
        assert "train.npz" in refusal(arrays.build, path=str(tmp_path))


# ---- files that break when they are decoded


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "webp"])
def test_skip_leaves_out_what_cannot_be_decoded(kind, tmp_path, capsys):
    noise = np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), np.uint8)
    for i, image in enumerate(noise):
        Image.fromarray(image).save(tmp_path / f"{i}.{kind}")
    whole = (tmp_path / f"2.{kind}").read_bytes()
    (tmp_path / f"2.{kind}").write_bytes(whole[: len(whole) // 2])
    if kind != "webp":  # whose header says how long the file is
        stopped = open_folder(tmp_path, on_error="stop", test_share=0.0)
        assert f"2.{kind}" in refusal(stopped.read, np.arange(5))
    capsys.readouterr()
    source = open_folder(tmp_path, on_error="skip", test_share=0.0)
    assert source.whole.skipped == 1 and [f.name for f in source.whole.files] == [f"{i}.{kind}" for i in (0, 1, 3, 4)]
    assert len(source.read(np.arange(4))["image"]) == 4
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"2.{kind}" in said and "skipped 1 of 5" in said


def test_pixels_in_flight_are_bounded(tmp_path, monkeypatch):
    """Threads wait for each other where they would hold more pixels than allowed; one larger image goes alone."""
    budget, most, now = images.Budget(100), [], []
    take = budget.take

    @contextlib.contextmanager
    def watched(n):
        with take(n):
            now.append(n)
            most.append(sum(now))
            yield
            now.remove(n)

    monkeypatch.setattr(budget, "take", watched)
    monkeypatch.setattr(images, "_BUDGET", budget)
    save_images(tmp_path)
    Image.new("RGB", (20, 20)).save(tmp_path / "large.png")
    source = open_folder(tmp_path, image_size=4, test_share=0.0)
    assert len(source.read(np.arange(len(source)))["image"]) == N + 1
    assert max(most) == 20 * 20 + 16 and sorted(most)[-2] <= 100
