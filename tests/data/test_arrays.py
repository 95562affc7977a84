"""The layouts of `.npz` data sets, and odd or hostile files refused by name in one line."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from score_flow.data import arrays
from tests.data.writers import noise, refusal


@pytest.mark.parametrize("name", arrays.IMAGE_NAMES)
def test_arrays_layouts(name, tmp_path):
    train, test = noise(5, 3, 3), noise(4, 3, 3, seed=1)  # (n, h, w): one channel
    np.savez(tmp_path / "train.npz", **{name: train, "y": np.array([0, 1, 2, 3, 6])})
    np.savez_compressed(tmp_path / "test.npz", **{name: test, "labels": np.zeros(4, np.int8)})
    for path in (tmp_path, tmp_path / "{split}.npz"):
        for split, image in (("train", train), ("test", test)):
            source = arrays.build(split, str(path))
            np.testing.assert_array_equal(source.read(np.arange(len(image)))["image"][..., 0], image)
            assert source.num_classes == 7  # of both files
    np.testing.assert_array_equal(arrays.read(tmp_path / "train.npz").image[..., 0], train)


IMAGE = noise(4, 3, 3, 3)
REFUSED_ARRAYS = {
    "float": (dict(image=IMAGE / 255.0), "float64; allowed: uint8"),
    "flat": (dict(image=IMAGE.reshape(4, 27)), "(4, 27)"),
    "channels_first": (dict(image=noise(4, 3, 32, 32)), "(4, 3, 32, 32)"),
    "empty": (dict(image=IMAGE[:0]), "at least one image"),
    "no_images": (dict(picture=IMAGE), "got picture; allowed names: image"),
    "two_images": (dict(image=IMAGE, x=IMAGE), "got image and x"),
}


@pytest.mark.parametrize("case", REFUSED_ARRAYS)
def test_arrays_refuses(case, tmp_path):
    arrays_, words = REFUSED_ARRAYS[case]
    np.savez(tmp_path / "data.npz", **arrays_)
    message = refusal(arrays.build, "train", str(tmp_path / "data.npz"))
    assert words in message
    assert "data.npz" in message


NO_LABELS = {
    "count": (dict(label=np.arange(3)), "3 labels for 4 images"),
    "negative": (dict(label=np.arange(-1, 3)), "from -1 to 2"),
    "one_hot": (dict(label=np.eye(4)), "float64 of shape (4, 4)"),
    "huge": (dict(label=np.full(4, 2**40)), "allowed: 0 to"),
    "names": (dict(label=np.array(["cat"] * 4)), "<U3"),
    "two": (dict(label=np.arange(4), y=np.arange(4)), "got label and y"),
}


@pytest.mark.parametrize("case", NO_LABELS)
def test_arrays_with_odd_labels_are_unlabelled_and_say_why(case, tmp_path):
    """Who needs labels is refused with the reason (tests/data/test_splits); nobody else has to mind."""
    labels, words = NO_LABELS[case]
    np.savez(tmp_path / "data.npz", image=IMAGE, **labels)
    source = arrays.read(tmp_path / "data.npz")
    assert (source.label, source.num_classes) == (None, 0)
    assert words in source.unlabelled and "data.npz" in source.unlabelled and "\n" not in source.unlabelled
    assert set(source.read(np.arange(2))) == {"image"}


def test_arrays_checks_values_against_the_levels(tmp_path):
    np.savez(tmp_path / "data.npz", image=np.full((2, 2, 2, 1), 17, np.uint8))
    assert arrays.build("train", str(tmp_path / "data.npz"), levels=18).levels == 18
    assert "reach 17; allowed with config.data.source.levels = 17: 0 to 16" in refusal(
        arrays.build, "train", str(tmp_path / "data.npz"), levels=17
    )


def test_arrays_names_a_missing_file(tmp_path):
    np.savez(tmp_path / "train.npz", image=IMAGE)
    (tmp_path / "train.npz").rename(tmp_path / "other.npz")
    message = refusal(arrays.build, "test", str(tmp_path))
    assert "config.data.source.path" in message and "train.npz" in message and "other.npz" in message
    assert "nowhere" in refusal(arrays.build, "test", str(tmp_path / "nowhere"))
    assert "got nothing" in refusal(arrays.build)


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def hostile_archives(path):
    """name -> bytes of something that is not an honest .npz"""
    pickled, honest, claim = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(pickled, np.array([Canary(path / "canary")], dtype=object), allow_pickle=True)
    np.savez(honest, image=IMAGE)
    header = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 32, 32, 3)}
    np.lib.format.write_array_header_1_0(claim, header)

    def zipped(*entries):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in entries:
                archive.writestr(name, data)
        return out.getvalue()

    image = zipfile.ZipFile(honest).read("image.npy")
    flipped = bytearray(honest.getvalue())
    flipped[honest.getvalue().index(IMAGE.tobytes()) + 5] ^= 1
    return {
        "pickled": zipped(("image.npy", pickled.getvalue())),
        "raw_pickle": pickle.dumps(Canary(path / "canary")),
        "truncated": honest.getvalue()[:-40],
        "flipped_bit": bytes(flipped),
        "claims_3_PB": zipped(("image.npy", claim.getvalue())),
        "short_data": zipped(("image.npy", image[:-1])),
        "bomb": zipped(("image.npy", image), ("other.npy", bytes(20_000_000))),
        "not_npy": zipped(("image.npy", b"hello")),
        "two_of_one_name": zipped(("image.npy", image), ("image", image)),
        "no_entries": zipped(),
        "zero_bytes": b"",
        "text": b"image",
    }


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", list(hostile_archives(Path())))
def test_arrays_never_trusts_an_archive(case, tmp_path):
    file = tmp_path / "data.npz"
    file.write_bytes(hostile_archives(tmp_path)[case])
    assert "data.npz" in refusal(arrays.build, "train", str(file), max_bytes=10_000_000)
    assert not (tmp_path / "canary").exists()
