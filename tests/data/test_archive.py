"""Zip and tar archives of images as people have them: pixels, labels and splits are the writer's."""

import json

import numpy as np
import pytest

from score_flow.data import archive, blobs, folder
from score_flow.data.base import facts
from tests.data.writers import IMAGES, PNGS, N, expect, refusal, tar_of, zip_of

NAMES = [f"{('cat', 'dog', 'eel')[i % 3]}/{i:02d}.png" for i in range(N)]


def open_all(path, split="train", **fields):
    return archive.build(split, str(path), **({"image_size": 8, "test_share": 0.0} | fields))


def save(file, files, pack=zip_of):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pack(files))
    return file


@pytest.mark.parametrize("pack", [zip_of, lambda files: zip_of(files, True), lambda files: tar_of(files, "w")])
def test_an_archive_of_a_folder_is_the_folder(pack, tmp_path):
    """The same images in the same order under the same labels, so that a run goes on with the other one."""
    files = dict(zip(NAMES, PNGS, strict=True))
    for name, content in files.items():
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(content)
    packed = {f"top/{name}": files[name] for name in reversed(files)} | {
        "__MACOSX/top/._x.png": b"",
        "top/read.me": b"",
    }
    file = save(tmp_path / "d.zip", packed, pack)
    for split in ("train", "test"):
        there = folder.build(split, str(tmp_path / "d"), image_size=8)
        here = open_all(file, split, test_share=0.1)
        assert facts(here) | {"name": ""} == facts(there) | {"name": ""}
        np.testing.assert_array_equal(
            here.read(np.arange(len(here)))["image"], there.read(np.arange(len(there)))["image"]
        )
    assert open_all(file).classes == ("cat", "dog", "eel")


def test_edm_zip_has_the_labels_of_its_dataset_json(tmp_path):
    names = [f"{i // 5:05d}/img{i:08d}.png" for i in range(N)]
    labels = [(7 * i) % 5 for i in range(N)]
    table = json.dumps({"labels": [[name, label] for name, label in zip(names, labels, strict=True)]}).encode()
    files = dict(zip(names, PNGS, strict=True))
    source = open_all(save(tmp_path / "edm.zip", files | {"dataset.json": table}))
    expect(source, IMAGES, labels)
    assert source.num_classes == 5
    source = open_all(save(tmp_path / "null.zip", files | {"dataset.json": b'{"labels": null}'}))
    assert source.num_classes == 0 and '"labels": null' in source.whole.unlabelled
    source = open_all(save(tmp_path / "short.zip", files | {"dataset.json": b'{"labels": [["x.png", 1]]}'}))
    assert "names no label of 00000/img00000000.png" in source.whole.unlabelled


@pytest.mark.parametrize("given", ["folder", "pattern", "split", "star"])
def test_webdataset_shards(given, tmp_path):
    labels = [(5 * i) % 4 for i in range(N)]
    for k in range(3):
        rows = range(3 * k, 3 * k + 3)
        files = {f"{i:06d}.png": PNGS[i] for i in rows} | {f"{i:06d}.cls": str(labels[i]).encode() for i in rows}
        save(tmp_path / f"set-train-{k:04d}.tar", files, lambda files: tar_of(files, "w"))
    test = {f"{i:06d}.{end}": content for i in range(9, N) for end, content in (("png", PNGS[i]), ("cls", b" 1\n"))}
    save(tmp_path / "set-val-0000.tar", test, lambda files: tar_of(files, "w"))
    names = {"folder": "", "pattern": "set-train-{0000..0002}.tar", "split": "set-{split}-*.tar", "star": "*.tar"}
    path = tmp_path / names[given]
    expect(open_all(path), IMAGES[:9], labels[:9])
    test = open_all(path, "test", test_share=0.1)
    if given == "pattern":
        assert len(test) == 1  # held out
    else:
        expect(test, IMAGES[9:], [1, 1, 1])
        assert test.num_classes == 4


@pytest.mark.slow
def test_what_the_library_webdataset_writes(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=5, verbose=0) as sink:
        for i in range(N):
            sink.write({"__key__": f"sample{i:04d}", "png": IMAGES[i], "cls": i % 4, "json": {"i": i}})
    assert len(list(tmp_path.iterdir())) == 3
    expect(open_all(tmp_path), IMAGES, [i % 4 for i in range(N)])


def test_a_missing_cls_leaves_the_images_unlabelled_and_says_why(tmp_path):
    files = {f"{i}.png": PNGS[i] for i in range(4)} | {f"{i}.cls": b"1" for i in range(3)}
    source = open_all(save(tmp_path / "x.tar", files, lambda files: tar_of(files, "w")))
    assert source.num_classes == 0 and "3.png has no .cls" in source.whole.unlabelled
    source = open_all(save(tmp_path / "x.tar", files | {"3.cls": b"cat"}, lambda files: tar_of(files, "w")))
    assert "3.png has no .cls of a whole number" in source.whole.unlabelled


@pytest.mark.parametrize("kind", ["txt beside", "csv inside", "no test"])
def test_celeba(kind, tmp_path):
    files = {f"img_align_celeba/{i + 1:06d}.png": PNGS[i] for i in range(N)}
    parts = [0, 0, 1, 2, 0, 1, 0, 2, 0, 0, 0, 0]
    if kind == "no test":
        parts = [min(part, 1) for part in parts]
    if kind == "csv inside":
        lines = ["image_id,partition", *(f"{i + 1:06d}.png,{part}" for i, part in enumerate(parts))]
        files["list_eval_partition.csv"] = "\n".join(lines).encode()
    else:
        lines = [f"{i + 1:06d}.png {part}" for i, part in enumerate(parts)]
        (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines))
    file = save(tmp_path / "img_align_celeba.zip", files)
    for split, k in (("train", 0), ("test", max(parts))):
        expect(open_all(file, split), IMAGES[[i for i, part in enumerate(parts) if part == k]])
    if kind == "txt beside":
        (tmp_path / "list_eval_partition.txt").write_text("\n".join(lines[1:]))
        assert "000001.png has no line in list_eval_partition" in refusal(open_all, file)
        (tmp_path / "list_eval_partition.txt").write_text("\n".join(line[:-1] + "1" for line in lines))
        assert "no image is of partition 0" in refusal(open_all, file)


def test_labels_by_choice(tmp_path):
    file = save(tmp_path / "x.zip", {f"{'cat' if i % 2 else 'dog'}/{i % 3}_{i:02d}.png": PNGS[i] for i in range(N)})
    order = sorted(range(N), key=lambda i: (i % 2 == 0, i % 3, i))
    expect(open_all(file), IMAGES[order], [int(i % 2 == 0) for i in order])
    expect(open_all(file, labels="prefix"), IMAGES[order], [i % 3 for i in order])
    expect(open_all(file, labels="none"), IMAGES[order])
    assert "labels is 'json', but" in refusal(open_all, file, labels="json")


def test_folders_of_splits_in_an_archive(tmp_path):
    files = {f"x/{'Val' if i % 4 == 0 else 'train'}/{NAMES[i]}": PNGS[i] for i in range(N)}
    file = save(tmp_path / "x.zip", files | {"x/more/1.png": PNGS[0]})
    order = sorted((i for i in range(N) if i % 4), key=lambda i: NAMES[i])
    source = open_all(file)
    expect(source, IMAGES[order], [i % 3 for i in order])
    assert any("more, which are not read" in note for note in source.notes)
    order = sorted((i for i in range(N) if i % 4 == 0), key=lambda i: NAMES[i])
    expect(open_all(file, "test"), IMAGES[order], [i % 3 for i in order])
    for name in ("train", "Val"):
        file = save(tmp_path / "y.zip", {f"{name}/1.png": PNGS[0], "cat/1.png": PNGS[1]})
        assert f"beside {name}/ lie cat: is {name}/ a class or a split?" in refusal(open_all, file)


def test_the_first_release_of_imagenet_32_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("score_flow.data.releases.FIRST", {N - 2: "train", 2: "valid"})
    save(tmp_path / "train_32x32.zip", {f"train_32x32/{i:07d}.png": PNGS[i] for i in range(N - 2)})
    save(tmp_path / "valid_32x32.zip", {f"valid_32x32/{i:07d}.png": PNGS[i] for i in range(2)})
    assert "van den Oord" in open_all(tmp_path).name and "van den Oord" in open_all(tmp_path, "test").name
    save(tmp_path / "valid_32x32.zip", {f"valid_32x32/{i:07d}.png": PNGS[i] for i in range(3)})
    assert "van den Oord" not in open_all(tmp_path, "test").name


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    assert "no images in" in refusal(open_all, save(tmp_path / "a.zip", {"read.me": b""}))
    (tmp_path / "none").mkdir()
    assert "holds no zip or tar archive" in refusal(open_all, tmp_path / "none")
    assert "no such file" in refusal(open_all, tmp_path / "x.zip")
    file = save(tmp_path / "b.zip", {"1.png": PNGS[0], "2.png": PNGS[1][:40], "3.png": PNGS[2]})
    assert "b.zip: 2.png" in refusal(open_all, file)
    expect(open_all(file, on_error="skip"), IMAGES[[0, 2]])
    monkeypatch.setattr(blobs, "LOOKED_AT", 10)  # of many bytes each image when it is read, the first at once
    assert "b.zip: 2.png" in refusal(open_all(file).read, np.arange(3))
    assert "1.png" in refusal(open_all, save(tmp_path / "c.zip", {"1.png": b"hello", "2.png": PNGS[0]}))
