"""emoji-datasource-twitter in its real layout: categories, white behind, variants of one sign in one split."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from score_flow.data import emoji
from tests.data.writers import emoji_package, refusal
from tests.launch import ROOT

TONES = ("1F3FB", "1F3FD", "1F3FF")
WAVES = [(f"1F44{i}", "People & Body", TONES, True) for i in "ABCDEF"]
PLAIN = [(f"1F9{i}", "Food & Drink" if i % 2 else "Flags", (), True) for i in range(10, 50)]
RUNNERS = [  # one person in three genders, to the left and to the right
    ("1F3C3", "People & Body", TONES, True),
    ("1F3C3-200D-2640-FE0F", "People & Body", TONES, True),
    ("1F3C3-200D-2642-FE0F-200D-27A1-FE0F", "People & Body", TONES, True),
    *((f"{who}-200D-1F33E", "People & Body", TONES, True) for who in ("1F468", "1F469", "1F9D1")),
]
OTHERS = [("1F3FB", "Component", (), True), ("1F6DE", "Objects", (), False)]
ALL = [*WAVES, *PLAIN, *RUNNERS, *OTHERS]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return emoji_package(tmp_path_factory.mktemp("node_modules") / emoji.PACKAGE, ALL)


def both(package, **fields):
    return {split: emoji.build(split, str(package), **fields) for split in ("train", "test")}


def test_every_picture_once_with_its_category(package):
    parts = both(package)
    names = [name for part in parts.values() for name in part.files.names]
    expected = {f"{sign}-{tone}".strip("-").lower() + ".png" for sign, _, tones, _ in ALL[:-2] for tone in ("", *tones)}
    assert len(names) == len(expected) and set(names) == expected
    for part in parts.values():
        assert part.classes == ("Flags", "Food & Drink", "People & Body")
        categories = {name: part.classes[label] for name, label in zip(part.files.names, part.label, strict=True)}
        assert all(categories.get(f"{sign.lower()}.png", category) == category for sign, category, _, _ in ALL)
        assert list(part.files.names) == sorted(part.files.names)


def test_variants_of_a_sign_stay_in_one_split(package):
    parts = {split: set(part.files.names) for split, part in both(package).items()}
    for sign, _, tones, _ in WAVES:
        variants = {f"{sign}.png".lower(), *(f"{sign}-{tone}.png".lower() for tone in tones)}
        assert any(variants <= names for names in parts.values())
    for sign in ("1f3c3", "-200d-1f33e"):  # whoever runs, or farms
        assert sum(any(sign in name for name in names) for names in parts.values()) == 1
    assert 0 < len(parts["test"]) < len(parts["train"])


def test_a_split_does_not_depend_on_the_other_signs(package, tmp_path):
    fewer = both(emoji_package(tmp_path / "older", ALL[::2]))
    whole = both(package)
    assert all(set(fewer[split].files.names) <= set(whole[split].files.names) for split in whole)


def test_one_in_ten_signs_is_a_test_sign():
    share = np.mean([emoji._is_test(f"1F{i}") for i in range(5000)])
    assert abs(share - 0.1) < 4 * np.sqrt(0.1 * 0.9 / 5000)


def test_pictures_lie_on_white_at_the_size_that_is_asked_for(tmp_path):
    signs = [(f"2B{i}", "Symbols", (), True) for i in range(10, 60)]
    package = emoji_package(tmp_path, signs)
    for i, file in enumerate(sorted((package / emoji.PICTURES).iterdir())):
        half = np.zeros((64, 64, 4), np.uint8)
        half[:, 32:] = (i, 0, 0, 255)  # the left half is transparent black
        Image.fromarray(half).save(file)
    source = emoji.build("train", str(package), image_size=16)
    image = source.read(np.arange(3))["image"]
    assert image.shape == (3, 16, 16, 3) and (image[:, :, :7] == 255).all()
    assert image[:, 8, 15].tolist() == [[int(i), 0, 0] for i in red(source, 3)]


def red(source, n):
    """What the pictures say that they are, read by another way."""
    return [np.asarray(Image.open(source.files[i]))[0, 63, 0] for i in range(n)]


def test_of_equal_pictures_one_is_read(package, tmp_path):
    other = shutil.copytree(package, tmp_path / "equal")
    first, second = sorted((other / emoji.PICTURES).iterdir())[:2]
    shutil.copy(first, second)
    names = {name for part in both(other).values() for name in part.files.names}
    assert first.name in names and second.name not in names
    assert "1 pictures are equal" in emoji.build("train", str(other)).notes[0]


def test_what_is_absent_or_damaged_is_one_line(package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(emoji.build, "train").endswith("to install it: npm install emoji-datasource-twitter")
    assert "has no emoji.json" in refusal(emoji.build, "train", str(tmp_path))
    damaged = shutil.copytree(package, tmp_path / "damaged")
    for content in ('[{"unified": "1F', "{}", '[{"unified": 3}]', "[[]]"):
        (damaged / emoji.TABLE).write_text(content)
        assert str(damaged) in refusal(emoji.build, "train", str(damaged))
    table = json.loads((package / emoji.TABLE).read_text())
    (damaged / emoji.TABLE).write_text(json.dumps(table))
    next((damaged / emoji.PICTURES).iterdir()).unlink()
    assert "no such file" in refusal(emoji.build, "train", str(damaged))


def test_make_says_how_to_install_the_package_before_it_does_anything(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    command = ["make", "--no-print-directory", "gallery-colour"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    first, *rest = done.stderr.splitlines()
    assert done.returncode == 2 and first.endswith("to install it: npm install emoji-datasource-twitter")
    assert all(line.startswith("make") for line in rest) and not done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["Makefile"]
