"""Users' image files, decoded or refused as the golden set decides; every array of it is compared.

Our one difference is in what refuses grey of 16 bits: the set holds what PIL would silently make of it (`uint8_<size>`,
nearly white) and what its high bytes would be, for the record; we refuse the file, as the set decides.
"""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from score_flow.data import compare, fitting, folder, images
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from tests.golden_data import golden_dir

GOLDEN = golden_dir() / "images"
CASES = json.loads((GOLDEN / "images.json").read_text())["cases"] if GOLDEN.is_dir() else {}
VALUES = [case for case, row in CASES.items() if row["decision"] == "value"]
REFUSED = [case for case in CASES if case not in VALUES]
AS_ADM = compare.DECODED_BEFORE  # alpha dropped, EXIF turns ignored
LOSSY = (".jpg", ".jpeg", ".webp")  # libraries differ by 1 or 2 levels in the inverse cosine transform
pytestmark = pytest.mark.skipif(not CASES, reason="no golden images here")


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "expected.npz", allow_pickle=False) as archive:
        return dict(archive)


@pytest.fixture
def alone(tmp_path):
    """Puts one golden file into a folder of its own and returns the folder."""

    def place(case):
        file = GOLDEN / CASES[case]["file"]
        (tmp_path / file.name).write_bytes(file.read_bytes())
        return str(tmp_path)

    return place


def crops(case, expected):
    """size -> pixels of the square crops that the set has of an image."""
    named = {name: re.fullmatch(rf"{re.escape(case)}\.uint8_(\d+)", name) for name in expected}
    found = {int(match[1]): expected[name] for name, match in named.items() if match}
    assert found, case
    return found


@pytest.mark.parametrize("case", VALUES)
def test_centre_crop_is_adms(case, expected):
    """From the pixels that the source decoded: exact, whatever library decodes here."""
    for size, pixels in crops(case, expected).items():
        crop = fitting.bring_to(Image.fromarray(expected[f"{case}.decoded"]), (size, size), "crop")
        np.testing.assert_array_equal(np.array(crop), pixels)


@pytest.mark.parametrize("case", VALUES)
def test_files_are_decoded_as_decided(case, alone, expected):
    tolerance = 2 if CASES[case]["file"].endswith(LOSSY) else 0
    path = alone(case)
    for size, pixels in crops(case, expected).items():
        image = folder.build("train", path, image_size=size, **AS_ADM).read(np.array([0]))["image"][0]
        assert np.abs(image.astype(int) - pixels).max() <= tolerance


def test_square_files_of_the_wanted_size_are_not_resized(tmp_path, expected):
    """Their pixels are those that the source decoded."""
    square = [case for case in VALUES if len({*expected[f"{case}.decoded"].shape[:2]}) == 1]
    for case in square:
        file, decoded = GOLDEN / CASES[case]["file"], expected[f"{case}.decoded"]
        place = tmp_path / case
        place.mkdir()
        (place / file.name).write_bytes(file.read_bytes())
        image = folder.build("train", str(place), image_size=len(decoded), **AS_ADM).read(np.array([0]))["image"][0]
        assert np.abs(image.astype(int) - decoded).max() <= (2 if file.name.endswith(LOSSY) else 0)
    assert square


def test_pixels_reach_the_model_as_the_source_scales_them(expected):
    """level / 127.5 - 1, channels last here and first there; numbers up to 1, in float32, to two roundings."""
    found = [name for name in expected if name.endswith(".float_chw_m1_1")]
    for name in found:
        (pixels,) = crops(name.removesuffix(".float_chw_m1_1"), expected).values()
        ours = np.moveaxis(np.asarray(Scaling().normalise(jnp.asarray(pixels))), -1, 0)
        np.testing.assert_allclose(ours, expected[name], rtol=0, atol=2 * np.finfo(np.float32).eps)
    assert found


@pytest.mark.parametrize("case", REFUSED)
def test_files_are_refused_as_decided(case, alone):
    path = alone(case)
    with pytest.raises(UserError, match=re.escape(CASES[case]["file"].rpartition("/")[2])) as error:
        folder.build("train", path, image_size=16).read(np.array([0]))
    assert "\n" not in str(error.value)


def test_every_array_is_compared(expected):
    """None is of a kind that no test looks at, or of a file that nothing is decided about."""
    for name in expected:
        case, _, kind = name.rpartition(".")
        assert case in CASES
        known = re.fullmatch(r"uint8_\d+|decoded|float_chw_m1_1", kind)
        assert known or case in REFUSED, name


def test_skipping_leaves_out_all_that_is_refused(capsys):
    """Files that only decoding shows to be truncated too: which images a run has is known at its start."""
    source = folder.build("train", str(GOLDEN / "files"), image_size=16, on_error="skip", test_share=0.0)
    assert (source.whole.skipped, len(source)) == (len(REFUSED), len(VALUES))
    printed = capsys.readouterr().err
    assert printed.startswith(f"data: skipped {len(REFUSED)} of {len(CASES)} files") and printed.count("\n") == 1
    assert source.read(np.arange(len(source)))["image"].shape == (len(VALUES), 16, 16, 3)
    names = {CASES[case]["file"].rpartition("/")[2] for case in REFUSED}
    assert not names & {file.name for file in source.whole.files}


def test_files_cut_off_are_known_by_their_end():
    """What is looked at in place of decoding where there are very many files."""
    reader = images.ImageReader(16, 3, 64_000_000)
    late = [case for case in REFUSED if CASES[case].get("pillow_error", "").startswith("OSError")]
    assert late
    for case in CASES:
        file = GOLDEN / CASES[case]["file"]
        assert (not reader.check(file, "end").refused) == (case in VALUES), case
