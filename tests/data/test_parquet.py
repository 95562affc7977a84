"""Parquet files of images, by pyarrow in the layout of Hugging Face's datasets: pixels and labels are the writer's."""

import json

import numpy as np
import pytest

from score_flow.data import parquet
from tests.data.writers import IMAGES, PNGS, N, expect, refusal, write_parquet

pytest.importorskip("pyarrow")
LABELS = [(5 * i) % 3 for i in range(N)]
NAMES = ("cat", "dog", "eel")


def open_all(path, split="train", **fields):
    return parquet.build(split, str(path), **({"image_size": 8, "test_share": 0.0} | fields))


def test_shards_with_splits_and_names_of_classes(tmp_path):
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", PNGS[:5], LABELS[:5], NAMES)
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", PNGS[5:9], LABELS[5:9], NAMES)
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", PNGS[9:], LABELS[9:], NAMES)
    for path in (tmp_path, tmp_path / "data", tmp_path / "data/{split}-*.parquet"):
        expect(open_all(path), IMAGES[:9], LABELS[:9])
        expect(open_all(path, "test"), IMAGES[9:], LABELS[9:])
    assert open_all(tmp_path).classes == open_all(tmp_path, "test").classes == NAMES
    assert len(open_all(tmp_path / "data/train-*.parquet", "test", test_share=0.2)) == 2
    (tmp_path / "data/train-00001-of-00002.parquet").unlink()
    assert "lacks shard 00001 of 00002 of train" in refusal(open_all, tmp_path)


def test_folders_of_splits_as_the_hub_converts(tmp_path):
    write_parquet(tmp_path / "default/train/0000.parquet", PNGS[:9], LABELS[:9], NAMES)
    write_parquet(tmp_path / "default/test/0000.parquet", PNGS[9:], LABELS[9:], NAMES)
    expect(open_all(tmp_path), IMAGES[:9], LABELS[:9])
    expect(open_all(tmp_path, "test"), IMAGES[9:], LABELS[9:])


@pytest.mark.parametrize("held", [parquet.HELD, 1])
def test_rows_in_any_order_with_few_groups_held(held, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "HELD", held)
    source = open_all(write_parquet(tmp_path / "x.parquet", PNGS, LABELS, NAMES))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(N), 2))
    examples = source.read(order)
    np.testing.assert_array_equal(examples["image"], IMAGES[order])
    assert examples["label"].tolist() == [LABELS[i] for i in order]
    assert any("--mode=pack" in note for note in source.whole.notes) == (held == 1)


def test_columns_without_metadata(tmp_path):
    """Bytes alone, labels as numbers or as text; and columns that have to be named."""
    import pyarrow
    from pyarrow.parquet import write_table

    def write(**columns):
        write_table(pyarrow.table(columns), tmp_path / "x.parquet")
        return tmp_path / "x.parquet"

    source = open_all(write(jpg=PNGS, cls=LABELS))
    expect(source, IMAGES, LABELS)
    assert source.num_classes == 3
    source = open_all(write(image=PNGS, label=[NAMES[i] for i in LABELS]))
    expect(source, IMAGES, LABELS)
    assert source.classes == NAMES
    expect(open_all(write(image=PNGS)), IMAGES)
    file = write(picture_of_it=PNGS, kind=LABELS)
    assert "got the columns picture_of_it, kind; name it" in refusal(open_all, file)
    expect(open_all(file, image_column="picture_of_it", label_column="kind"), IMAGES, LABELS)
    assert "'kinds'; allowed: kind" in refusal(open_all, file, image_column="picture_of_it", label_column="kinds")
    source = open_all(write(image=PNGS, label=[-1] * N))
    assert source.num_classes == 0 and "labels from -1 to -1" in source.whole.unlabelled
    assert "row 3, without bytes in image" in refusal(open_all, write(image=[*PNGS[:3], None]))
    assert "row 1" in refusal(open_all, write(image=[PNGS[0], b"hello"]))
    assert "holds no rows" in refusal(open_all, write(image=pyarrow.array([], pyarrow.binary())))


def test_damaged_files_are_one_line(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", PNGS, LABELS, NAMES)
    whole = file.read_bytes()
    at = whole.index(PNGS[7][80:110])
    for content in (whole[:-20], whole[: len(whole) // 2], b"hello", b"", whole[:at] + bytes(30) + whole[at + 30 :]):
        file.write_bytes(content)
        assert "x.parquet" in refusal(lambda: open_all(file).read(np.arange(N)))


@pytest.mark.slow
def test_what_the_library_datasets_writes(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"label": datasets.ClassLabel(names=list(NAMES)), "image": datasets.Image()})
    rows = {"image": [{"bytes": png, "path": None} for png in PNGS], "label": LABELS}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "train.parquet"), batch_size=5)
    source = open_all(tmp_path)
    expect(source, IMAGES, LABELS)
    assert source.classes == NAMES


def test_metadata_that_cannot_be_read_is_none(tmp_path):
    for text in (b"{", b"[]", b'{"info": 3}', json.dumps({"info": {"features": {"image": 3}}}).encode()):
        expect(open_all(write_parquet(tmp_path / "x.parquet", PNGS, LABELS, metadata=text)), IMAGES, LABELS)
