"""TFRecord files of TFDS, StyleGAN and others: pixels and labels are the writer's; damage is one line."""

import json
import shutil

import numpy as np
import pytest

from score_flow.data import tfds, tfrecord
from score_flow.data.formats import crc32c
from score_flow.data.formats import tfrecord as records
from tests.data import writers
from tests.data.writers import IMAGES, PNGS, N, example, expect, noise, refusal, write_tfrecord

LABELS = [(5 * i) % 3 for i in range(N)]
EXAMPLES = [example(image=png, label=label, id=b"x") for png, label in zip(PNGS, LABELS, strict=True)]


def open_all(path, split="train", **fields):
    return tfrecord.build(split, str(path), **({"image_size": 8, "test_share": 0.0} | fields))


# ---- the format


def test_crc32c_is_that_of_the_writer():
    from tensorboardX.crc32c import crc32c as theirs
    from tensorboardX.record_writer import masked_crc32c

    assert crc32c.crc(b"123456789") == 0xE3069283  # RFC 3720
    for n in (0, 1, 3, 8, 1019, 1020, 1021, 2048, 5000):
        content = bytes(noise(1, n)[0])
        assert (crc32c.crc(content), crc32c.masked(content)) == (theirs(content), masked_crc32c(content))
    rows = noise(7, 8)
    assert crc32c.masked_rows(rows).tolist() == [masked_crc32c(bytes(row)) for row in rows]


def test_examples_have_the_features_that_were_written():
    long = list(range(-3, 300))
    found = records.example(example(a=[b"x", b""], b=long, c=[1.5, -2.0], ä=7))
    assert found == {"a": [b"x", b""], "b": long, "c": [1.5, -2.0], "ä": [7]}
    unpacked = bytes.fromhex("0a0d 0a0b 0a016b 1206 1a04 0805 0807".replace(" ", ""))  # numbers not packed
    assert records.example(unpacked) == {"k": [5, 7]}
    assert records.example(b"") == {}


DAMAGED = {
    "cut in a record": (lambda whole: whole[:-10], "ends within record 11; cut off?"),
    "cut in a header": (lambda whole: whole + whole[:7], "damaged"),
    "length flipped": (lambda whole: bytes([whole[0] ^ 1]) + whole[1:], "record 0, byte 0: its length does not fit"),
    "record flipped": (lambda whole: whole[:200] + bytes([whole[200] ^ 1]) + whole[201:], "does not fit its crc32c"),
    "compressed": (lambda whole: b"\x1f\x8b" + whole, "gunzip it first"),
    "text": (lambda whole: b"hello", "no TFRecord file"),
    "empty": (lambda whole: b"", "holds no records"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line(case, tmp_path):
    damage, words = DAMAGED[case]
    file = write_tfrecord(tmp_path / "x.tfrecord", EXAMPLES)
    file.write_bytes(damage(file.read_bytes()))

    def read_all():
        source = open_all(file)
        source.read(np.arange(len(source)))

    message = refusal(read_all)
    assert words in message and "x.tfrecord" in message


def test_a_first_record_as_long_as_the_magic_of_gzip(tmp_path):
    file = write_tfrecord(tmp_path / "x.tfrecord", [bytes(0x8B1F), b""])
    assert file.read_bytes().startswith(b"\x1f\x8b") and len(records.open_files([file])) == 2


def test_records_that_are_no_example_are_one_line(tmp_path):
    for content in (b"\xff" * 12, b"\x0a\x7f", b"\x0b", bytes(9), example(picture=b"x"), example(image=b"hello")):
        message = refusal(open_all, write_tfrecord(tmp_path / "x.tfrecord", [content]))
        assert "record 0" in message


# ---- Examples in general


def test_files_of_splits_and_their_labels(tmp_path):
    write_tfrecord(tmp_path / "train-00000-of-00002", EXAMPLES[:4])
    write_tfrecord(tmp_path / "train-00001-of-00002", EXAMPLES[4:9])
    write_tfrecord(tmp_path / "validation-00000-of-00001", EXAMPLES[9:])
    expect(open_all(tmp_path), IMAGES[:9], LABELS[:9])
    expect(open_all(tmp_path, "test"), IMAGES[9:], LABELS[9:])
    assert open_all(tmp_path, "test").num_classes == open_all(tmp_path).num_classes == 3
    (tmp_path / "train-00001-of-00002").unlink()
    assert "lacks shard 00001 of 00002" in refusal(open_all, tmp_path)


def test_tf_slim_labels_begin_at_one(tmp_path):
    rows = [
        example(**{"image/encoded": png, "image/class/label": label + 1, "image/height": 8})
        for png, label in zip(PNGS, LABELS, strict=True)
    ]
    expect(open_all(write_tfrecord(tmp_path / "train-00000-of-00001", rows).parent), IMAGES, LABELS)


def test_features_by_name_and_images_of_any_size(tmp_path):
    rows = [example(picture=writers.png(noise(1, 9, 12, 3)[0]), kind=i % 2, label=7) for i in range(4)]
    file = write_tfrecord(tmp_path / "x.tfrecord", rows)
    assert "got the features kind, label, picture; name it" in refusal(open_all, file)
    source = open_all(file, image_feature="picture", label_feature="kind")
    assert source.read(np.arange(4))["label"].tolist() == [0, 1, 0, 1] and source.image_shape == (8, 8, 3)
    source = open_all(file, image_feature="picture", label_feature="picture")
    assert source.num_classes == 0 and "no picture that is one whole number" in source.whole.unlabelled


# ---- StyleGAN's


def test_stylegan_folder(tmp_path):
    writers.stylegan(tmp_path, IMAGES, np.eye(3)[LABELS])
    expect(open_all(tmp_path), IMAGES, LABELS)
    expect(open_all(tmp_path, image_size=4), IMAGES[:, ::2, ::2], LABELS)
    expect(open_all(tmp_path / "ffhq-r03.tfrecords"), IMAGES, LABELS)
    assert "image_size is 64; allowed: 4, 8" in refusal(open_all, tmp_path, image_size=64)
    assert "(8, 8, 3), as (h, w, c); allowed: (4, 4, 3)" in refusal(
        open_all, tmp_path / "ffhq-r03.tfrecords", image_size=4
    )
    np.save(open(tmp_path / "ffhq-rxx.labels", "wb"), np.eye(3)[LABELS[1:]])  # noqa: SIM115
    assert "got 11 labels of 3 classes for 12 images" in open_all(tmp_path).whole.unlabelled
    (tmp_path / "ffhq-rxx.labels").unlink()
    expect(open_all(tmp_path), IMAGES)


# ---- TFDS's: the layout as TFDS writes it, but for the format of the records


THEIRS = {}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What TFDS made in array_record, its records in a TFRecord file and said to be so."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    folder = tmp_path_factory.mktemp("tfds")
    writers.tfds_builder()(data_dir=str(folder), file_format="array_record").download_and_prepare()
    inside = folder / "tiny/1.0.0"
    for split in ("train", "test"):  # by TFDS, in the order to which it shuffled them
        source = tfds.build(split, "tiny", str(folder))
        THEIRS[split] = tuple(source.read(np.arange(len(source))).values())
    for file in list(inside.glob("*array_record*")):
        theirs = ArrayRecordDataSource([str(file)])
        write_tfrecord(inside / file.name.replace("array_record", "tfrecord"), [theirs[i] for i in range(len(theirs))])
        file.unlink()
    info = inside / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    (inside / "label.labels.txt").write_text("cat\ndog\neel\n")
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    return shutil.copytree(prepared, tmp_path / "tfds")


def test_tfds_reads_tfrecord_by_itself(folder):
    np.testing.assert_array_equal(np.sort(THEIRS["train"][0], axis=0), np.sort(noise(10, 4, 6, 3), axis=0))
    for split in ("train", "test"):
        source = tfds.build(split, "tiny", str(folder))
        expect(source, *THEIRS[split])
        assert source.classes == ("cat", "dog", "eel") and source.name == f"tiny/1.0.0/{split}"
    for dataset in ("tiny:1.0.0", "tiny"):
        assert tfds.build("train", dataset, str(folder)).image_shape == (4, 6, 3)
    for path in (folder / "tiny/1.0.0", folder / "tiny"):
        source = open_all(path, image_size=(4, 6))
        expect(source, *THEIRS["train"])
    assert "tfds build none" in refusal(tfds.build, "train", "none", str(folder))


def test_tfds_of_before_features_were_written(folder):
    """TFDS 3 left no features.json; names of classes lie beside."""
    inside = folder / "tiny/1.0.0"
    (inside / "features.json").unlink()
    expect(tfds.build("train", "tiny", str(folder)), *THEIRS["train"])
    (inside / "label.labels.txt").unlink()
    assert tfds.build("train", "tiny", str(folder)).num_classes == 0


def test_tfds_without_a_test_split_and_with_another_name(folder):
    inside = folder / "tiny/1.0.0"
    info = json.loads((inside / "dataset_info.json").read_text())
    info["splits"][1]["name"] = "validation"
    (inside / "dataset_info.json").write_text(json.dumps(info))
    (inside / "tiny-test.tfrecord-00000-of-00001").rename(inside / "tiny-validation.tfrecord-00000-of-00001")
    assert tfds.build("test", "tiny", str(folder)).name == "tiny/1.0.0/validation"
    (inside / "tiny-validation.tfrecord-00000-of-00001").unlink()
    assert len(tfds.build("test", "tiny", str(folder), test_share=0.2)) == 2
    assert len(tfds.build("train", "tiny", str(folder), test_share=0.2)) == 8


def test_tfds_that_is_damaged_is_one_line(folder):
    inside = folder / "tiny/1.0.0"
    info, text = inside / "dataset_info.json", (inside / "dataset_info.json").read_text()
    info.write_text(text.replace('"10"', '"11"'))
    assert "train has 10 records, of 11" in refusal(tfds.build, "train", "tiny", str(folder))
    for broken in ("{", "[]", '{"splits": 3}', '{"splits": [{}]}'):
        info.write_text(broken)
        assert "tiny/1.0.0" in refusal(tfds.build, "train", "tiny", str(folder))
    info.write_text(text)
    features = inside / "features.json"
    features.write_text(features.read_text().replace('"4"', '"-1"'))
    message = refusal(tfds.build, "train", "tiny", str(folder))
    assert "allowed: of one size" in message and "name=tfrecord" in message
    features.write_text(features.read_text().replace('"-1"', '"5"'))
    assert "record 0 is of 4x6 pixels; allowed: 5x6" in refusal(
        tfds.build("train", "tiny", str(folder)).read, np.arange(2)
    )
    other = shutil.copytree(inside, folder / "tiny/other/1.0.0")
    assert "allowed, as there are configs: tiny, tiny/other" in refusal(tfds.build, "train", "tiny", str(folder))
    assert other.exists() and tfds.build("train", "tiny/other", str(folder))
