"""Pixels of image files: what lies behind alpha, turns, sizes and shapes, values of more than 8 bits."""

import numpy as np
import pytest
from PIL import Image

from score_flow.build import experiment
from score_flow.config import registries
from score_flow.config.components import Component, resolve
from score_flow.config.loading import load
from score_flow.data import compare, fitting, folder
from score_flow.data.images import TURNS, Blob, ImageReader
from score_flow.errors import UserError
from tests.data.test_regular_files import refusal

MLP = ("--config.network.name=mlp", "--config.network.width=8", "--config.network.depth=1")
NOISE = np.random.default_rng(0).integers(0, 256, (12, 20, 4), np.uint8)


def saved(tmp_path, array, name="a.png", **options):
    file = tmp_path / name
    Image.fromarray(array).save(file, **options)
    return file


# ---- alpha


def over(rgba, colour):
    """alpha front + (1 - alpha) behind, in exact arithmetic."""
    alpha = rgba[..., 3:].astype(float) / 255
    return alpha * rgba[..., :3] + (1 - alpha) * np.array(colour, float)


COLOURS = {"white": (255, 255, 255), "#ff8000": (255, 128, 0), "black": (0, 0, 0)}


@pytest.mark.parametrize(("background", "colour"), COLOURS.items())
def test_transparent_images_lie_on_their_background(background, colour, tmp_path):
    square = NOISE[:, :12]
    got = ImageReader(12, background=background).decode(saved(tmp_path, square))
    assert np.abs(got - over(square, colour)).max() <= 1


def test_alpha_may_be_dropped(tmp_path):
    square = NOISE[:, :12]
    file = saved(tmp_path, square)
    np.testing.assert_array_equal(ImageReader(12, background="drop").decode(file), square[..., :3])
    opaque = saved(tmp_path, square[..., :3], "b.png")
    assert ImageReader(12).check(file).alpha and not ImageReader(12).check(opaque).alpha


def test_grey_and_palettes_lie_on_it_too(tmp_path):
    grey = np.array([[[10, 255], [200, 0]], [[50, 128], [90, 255]]], np.uint8)
    got = ImageReader(2, 1).decode(saved(tmp_path, grey))[..., 0]
    assert np.abs(got - np.array([[10, 255], [152, 90]])).max() <= 1
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([9, 9, 9, 80, 80, 80])
    palette.save(tmp_path / "p.gif", transparency=1)
    assert ImageReader(2).decode(tmp_path / "p.gif")[..., 0].tolist() == [[9, 255], [255, 9]]


def test_a_person_is_told_once_what_was_decided(tmp_path):
    for i in range(3):
        saved(tmp_path, NOISE[..., : 3 + (i > 0)], f"{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    saved(tmp_path, NOISE[..., :3], "3.jpg", exif=exif)
    source = folder.build("train", str(tmp_path), image_size=8)
    assert source.decoding == {"background": "white", "upright": True}
    (alpha, turned) = (next(note for note in source.notes if word in note) for word in ("alpha", "EXIF"))
    assert alpha.startswith("2 of 4 images") and "white" in alpha
    assert turned.startswith("1 of 4 images") and "upright" in turned
    as_before = folder.build("train", str(tmp_path), image_size=8, background="drop", upright=False)
    assert as_before.decoding == {"background": "drop", "upright": False}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"background": "whit"}, "config.data.source.background: got 'whit'; allowed: drop, or a colour"),
        ({"image_size": 16, "pad_to": 12}, "config.data.source.pad_to: got 12; allowed: from 16 x 16 on"),
        ({"image_size": (4, 0)}, "config.data.source.image_size is (4, 0); it must be at least 1"),
        ({"image_size": (4, 4, 4)}, "2 items."),
        ({"range": (1.0, 1.0)}, "config.data.source.range: got (1.0, 1.0)"),
        ({"range": (1.0,)}, "config.data.source.range is (1.0,); it must have 0 or 2 items"),
        ({"fit": "cut"}, "config.data.source.fit is 'cut'; allowed: crop, pad, stretch"),
    ],
)
def test_options_are_checked_before_a_file_is_looked_at(fields, message, tmp_path):
    section = Component("folder", {"path": str(tmp_path / "nowhere")} | fields)
    assert message in refusal(resolve, registries.SOURCES, section, "config.data.source", split="train")


# ---- turns


@pytest.mark.parametrize("number", [1, *TURNS])
def test_files_are_turned_upright(number, tmp_path):
    """Saved as a camera does: turned away, with the number that says how it is turned back."""
    upright = NOISE[..., :3]
    away = {1: None} | TURNS | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    image = Image.fromarray(upright)
    exif = Image.Exif()
    exif[0x0112] = number
    (image if number == 1 else image.transpose(away[number])).save(tmp_path / "a.png", exif=exif)
    reader = ImageReader((12, 20))
    np.testing.assert_array_equal(reader.decode(tmp_path / "a.png"), upright)
    assert reader.check(tmp_path / "a.png").turned == (number != 1)


def test_turns_may_be_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    file = saved(tmp_path, NOISE[..., :3], exif=exif)
    np.testing.assert_array_equal(ImageReader((12, 20), upright=False).decode(file), NOISE[..., :3])


# ---- sizes


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (9, 5), (40, 24)])
def test_every_fit_gives_the_size(fit, size, tmp_path):
    reader = ImageReader(size, fit=fit)
    assert reader.decode(saved(tmp_path, NOISE[..., :3])).shape == (*size, 3) == reader.shape


def test_a_flat_image_stays_flat_but_for_what_is_padded():
    flat = Image.new("RGB", (90, 30), (200, 100, 50))
    for fit in ("crop", "stretch"):
        assert np.ptp(np.asarray(fitting.bring_to(flat, (20, 10), fit)), axis=(0, 1)).max() == 0
    padded = np.asarray(fitting.bring_to(flat, (30, 20), "pad", (1, 2, 3)))
    assert (padded[:5] == [1, 2, 3]).all() and (padded[-5:] == [1, 2, 3]).all()
    assert (padded[5:-5] == [200, 100, 50]).all()


def test_crop_keeps_the_middle_and_stretch_keeps_all():
    thirds = np.repeat(np.array([0, 100, 200], np.uint8), 32)[None].repeat(32, 0)
    image = Image.fromarray(thirds)
    assert (np.asarray(fitting.bring_to(image, (32, 32), "crop")) == 100).all()
    whole = np.asarray(fitting.bring_to(image, (36, 32), "stretch"))
    assert whole[0, [0, 18, 35]].tolist() == [0, 100, 200]


def test_padding_adds_the_background_evenly(tmp_path):
    inside = NOISE[:, :12, :3]
    got = ImageReader(12, pad_to=(16, 15), background="#010203").decode(saved(tmp_path, inside))
    np.testing.assert_array_equal(got[2:-2, 2:-1], inside)
    got[2:-2, 2:-1] = (1, 2, 3)
    assert got.shape == (16, 15, 3) and (got == [1, 2, 3]).all()
    stack = fitting.padded(inside[None], (16, 15), 7)
    np.testing.assert_array_equal(stack[0, 2:-2, 2:-1], inside)
    assert stack.shape == (1, 16, 15, 3) and stack[0, 0, 0, 0] == 7


# ---- more than 8 bits


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bits_are_read_with_a_range(extension, tmp_path):
    values = np.random.default_rng(1).integers(0, 4096, (8, 8)).astype(np.uint16)
    file = saved(tmp_path, values, f"a.{extension}")
    got = ImageReader(8, 1, range=(0, 4095)).decode(file)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[..., 0], values)
    np.testing.assert_array_equal(ImageReader(8, 3, range=(0, 4095)).decode(file)[..., 2], values)
    assert "mode I;16" in ImageReader(8, 1).check(file).refused and "range=" in ImageReader(8, 1).check(file).refused
    with pytest.raises(UserError, match=r"a.(png|tif): values from .*; allowed, by config.data.source.range: 0 to 99"):
        ImageReader(8, 1, range=(0, 99)).decode(file)


def test_real_values_are_read_and_filters_stay_in_their_range(tmp_path):
    values = np.where(np.arange(16)[:, None] < 8, -1.5, 2.5).astype(np.float32).repeat(16, 1)
    file = saved(tmp_path, values, "a.tif")
    np.testing.assert_array_equal(ImageReader(16, 1, range=(-1.5, 2.5)).decode(file)[..., 0], values)
    small = ImageReader(12, 1, range=(-1.5, 2.5), pad_to=14).decode(file)
    assert small.min() == -1.5 and small.max() == 2.5 == small[0, 0, 0]
    source = folder.build("train", str(tmp_path), image_size=16, channels=1, range=(-1.5, 2.5))
    assert (source.levels, source.range, source.read(np.arange(1))["image"].dtype) == (0, (-1.5, 2.5), np.float32)


def test_levels_are_values_of_a_range_too(tmp_path):
    file = saved(tmp_path, NOISE[:, :12, :3])
    np.testing.assert_array_equal(ImageReader(12, range=(0, 255)).decode(file), NOISE[:, :12, :3])
    with pytest.raises(UserError, match="a.png: cannot be read|a.png: not an image"):
        ImageReader(12, range=(0, 255)).decode(Blob("a.png", b"\x89PNG\r\n\x1a\n"))


# ---- runs of before


def test_older_runs_go_on_with_alpha_dropped_and_turns_ignored(tmp_path):
    """Their states know nothing of it, where the images that differ may lie beyond those that are compared."""
    for i in range(4):
        saved(tmp_path, NOISE[:, :12], f"{i}.png")
    flags = ["--config.data.source.name=folder", f"--config.data.source.path={tmp_path}", *MLP]
    config = load("configs/digits.py", flags := [*flags, "--config.data.source.image_size=12"])
    new = experiment(config)
    assert new.data_facts["decoding"] == {"background": "white"}
    known = {name: value for name, value in new.data_facts.items() if name not in ("decoding", "range")}
    for facts_of_older in ({}, known | {"first": None, "pixels": None}):
        old = experiment(config, facts_of_older)
        np.testing.assert_array_equal(old.train_source.read(np.arange(1))["image"][0], NOISE[:, :12, :3])
        compare.refuse_other_data(facts_of_older, old.data_facts | {"test_share": 0.0}, "runs/r")
        message = refusal(compare.refuse_other_data, facts_of_older, new.data_facts, "runs/r")
        assert "give --config.data.source.background=drop" in message
        again = experiment(config, old.data_facts)
        assert again.data_facts == old.data_facts
        typed = load("configs/digits.py", [*flags, "--config.data.source.background=white"])
        assert experiment(typed, facts_of_older).data_facts["decoding"] == {"background": "white"}
