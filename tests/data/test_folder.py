"""Folders of image files: odd or hostile files refused by name in one line (decoding: test_golden_images)."""

import dataclasses
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from score_flow.config.hints import arguments_of
from score_flow.data import encoded, folder, images
from score_flow.errors import UserError


def write_image(file, size=(8, 8), red=100):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red, 10, 20)).save(file)


def refusal(build, *args, **fields) -> str:
    with pytest.raises(UserError) as error:
        build(*args, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- limits


def png_claiming(width, height):
    """A PNG with a sound header and next to no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(50_000, 50_000), (8_001, 8_000), (60_000_000, 1), (1, 60_000_000)])
def test_folder_refuses_bombs_before_decoding(size, tmp_path):
    """Too many pixels in the file, or after the short side is brought to image_size."""
    (tmp_path / "bomb.png").write_bytes(png_claiming(*size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refusal(folder.build, "train", str(tmp_path))
    assert "bomb.png" in message
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
    )  # kB; one decoded image is 180 MB or more


def test_folder_checks_the_size_without_decoding(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", size=(100, 100))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert "100x100" in refusal(folder.build, "train", str(tmp_path), image_size=8, max_pixels=9_999)
    assert len(folder.build("train", str(tmp_path), image_size=8, max_pixels=10_000)) == 1


def test_folder_knows_no_formats_but_its_own(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", "TGA")
    (tmp_path / "b.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (tmp_path / "c.png").write_bytes(b"")
    for file in "abc":
        assert f"{file}.png" in images.ImageReader(8, 3, 10_000).check(tmp_path / f"{file}.png").refused


def test_folder_refuses_a_size_beyond_its_pixels(tmp_path):
    assert "image_size: got 9000; allowed: 1 to 8000" in refusal(folder.build, "train", str(tmp_path), image_size=9000)


# ---- files and classes


def test_folder_formats_and_channels(tmp_path):
    extensions = ["png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "PNG"] + ["webp"] * features.check("webp")
    for extension in extensions:
        write_image(tmp_path / f"{extension}-{extension.isupper()}.{extension}", size=(9, 7), red=200)
    (tmp_path / "notes.txt").write_text("not an image")
    write_image(tmp_path / ".hidden.png")
    colour = folder.build("train", str(tmp_path), image_size=4, test_share=0.0)
    grey = folder.build("train", str(tmp_path), image_size=4, channels=1, test_share=0.0)
    assert len(colour) == len(extensions)
    assert colour.num_classes == 0
    every = np.arange(len(colour))
    # ITU-R 601 luma of (200, 10, 20) is 67.95; lossy formats move a flat colour by a few levels
    assert grey.read(every)["image"].shape == (len(every), 4, 4, 1)
    assert np.abs(grey.read(every)["image"].astype(int) - 68).max() <= 3
    assert np.abs(colour.read(every)["image"].astype(int) - np.array([200, 10, 20])).max() <= 5


def test_folder_classes_are_sub_folders(tmp_path):
    for name in ("b/x_1.png", "a/deep/x_2.png", "b/x_0.png"):
        write_image(tmp_path / name)
    source = folder.build("train", str(tmp_path), image_size=8, test_share=0.0)
    assert source.classes == ("a", "b")
    assert [file.relative_to(tmp_path).as_posix() for file in source.whole.files] == [
        "a/deep/x_2.png",
        "b/x_0.png",
        "b/x_1.png",
    ]
    assert source.read(np.arange(3))["label"].tolist() == [0, 1, 1]


def test_folder_classes_are_prefixes_without_sub_folders(tmp_path):
    for name in ("dog_1.png", "cat_1.png", "eel_1.png"):
        write_image(tmp_path / name)
    source = folder.build("train", str(tmp_path), image_size=8, test_share=0.0)
    assert source.classes == ("cat", "dog", "eel")
    assert source.label.tolist() == [0, 1, 2]


def test_folder_without_classes_is_unlabelled(tmp_path):
    for name in ("1.png", "2.png"):
        write_image(tmp_path / name)
    assert set(folder.build("train", str(tmp_path), image_size=8).read(np.array([0]))) == {"image"}


def test_folder_train_names_the_classes_of_every_split(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/c/1.png"):
        write_image(tmp_path / name)
    test = folder.build("test", str(tmp_path), image_size=8)
    assert test.num_classes == 3
    assert test.label.tolist() == [2]
    write_image(tmp_path / "test/d/1.png")
    strange = folder.build("test", str(tmp_path), image_size=8)
    assert (strange.label, strange.num_classes) == (None, 0)
    assert "got class d" in strange.unlabelled


def test_folder_refuses_where_there_is_nothing_to_read(tmp_path):
    assert "no images" in refusal(folder.build, "train", str(tmp_path))
    assert "no such file" in refusal(folder.build, "train", str(tmp_path / "nowhere"))
    (tmp_path / "a.png").write_text("text")
    assert "a.png is not a folder" in refusal(folder.build, "train", str(tmp_path / "a.png"))
    assert "none of 1 files" in refusal(folder.build, "train", str(tmp_path), on_error="skip")
    assert "a.png" in refusal(folder.build, "train", str(tmp_path))


# ---- files that lie in others


def test_bytes_are_read_as_their_file_is(tmp_path):
    write_image(tmp_path / "a.png", size=(40, 30))
    reader, content = images.ImageReader(8), (tmp_path / "a.png").read_bytes()
    inside = images.Blob("a.zip: a.png", content)
    np.testing.assert_array_equal(reader.decode(inside), reader.decode(tmp_path / "a.png"))
    half = images.Blob("a.zip: a.png", content[: len(content) // 2])
    for depth in ("end", "pixels"):
        assert reader.check(inside, depth) == images.Header()
        assert reader.check(half, depth).refused.startswith("a.zip: a.png: ")
    assert "text.zip: not an image" in reader.check(images.Blob("text.zip", b"text")).refused


def test_sources_of_image_files_share_the_arguments_of_their_reader():
    @encoded.takes_reader
    def build(split: str = "train", *, reader: images.ImageReader, more: int = 1):
        return split, reader, more

    assert build("test", image_size=4, more=2) == ("test", images.ImageReader(4), 2)
    assert set(arguments_of(build)) == {"split", "more", *(f.name for f in dataclasses.fields(images.ImageReader))}
