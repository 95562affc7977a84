"""Data that is what it seems: what is held out, how splits and classes are called, and whose data a state knows."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from score_flow.data import arrays, base, compare, folder, splits
from score_flow.data.base import checksum
from score_flow.errors import UserError

N = 23
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), np.uint8)


def save_images(path, start=0, stop=N, classes=("cat", "dog")):
    """Images start .. stop of IMAGES, in the sub-folders of their classes, if any."""
    for i in range(start, stop):
        file = path / (classes[i % len(classes)] if classes else "") / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[i]).save(file)


def save_arrays(file, start=0, stop=N, **more):
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, image=IMAGES[start:stop], **({"label": np.arange(start, stop) % 2} | more))


def open_folder(path, split="train", **fields):
    return folder.build(split, str(path), **({"image_size": 8} | fields))


def open_arrays(path, split="train", **fields):
    return arrays.build(split, str(path), **fields)


def pixels(source) -> set[bytes]:
    return {image.tobytes() for image in source.read(np.arange(len(source)))["image"]}


def refusal(build, *args, **fields) -> str:
    with pytest.raises(UserError) as error:
        build(*args, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


WITHOUT_A_TEST_SPLIT = {
    "folder": (open_folder, "d", lambda path: save_images(path / "d")),
    "folder_flat": (open_folder, "d", lambda path: save_images(path / "d", classes=())),
    "folder_train": (open_folder, "d", lambda path: save_images(path / "d/Train")),
    "file": (open_arrays, "a.npz", lambda path: save_arrays(path / "a.npz")),
    "train_file": (open_arrays, "d", lambda path: save_arrays(path / "d/train.npz")),
    "pattern": (open_arrays, "x_{split}.npz", lambda path: save_arrays(path / "x_train.npz")),
}


@pytest.fixture(params=WITHOUT_A_TEST_SPLIT)
def unsplit(request, tmp_path):
    """(build, path) of a data set without a test split."""
    build, name, save = WITHOUT_A_TEST_SPLIT[request.param]
    save(tmp_path)
    return build, tmp_path / name


# ---- what is held out


@pytest.mark.parametrize(("share", "n_test"), [(0.1, 2), (0.3, 7), (0.001, 1), (0.999, 22)])
def test_hold_out_is_a_partition_and_says_so(unsplit, share, n_test):
    build, path = unsplit
    train, test = (build(path, split, test_share=share) for split in ("train", "test"))
    assert (len(train), len(test)) == (N - n_test, n_test)
    assert not pixels(train) & pixels(test)
    assert pixels(train) | pixels(test) == {image.tobytes() for image in IMAGES}
    assert f"(held out: {100 * share:g} % of {N} images)" in test.name and "/test" in test.name
    assert "held out" not in train.name
    assert any(f"{n_test} of {N} images are held out" in note for note in train.notes)
    for split, source in (("train", train), ("test", test)):  # every time, and by the number of images alone
        again = build(path, split, test_share=share)
        np.testing.assert_array_equal(again.chosen, source.chosen)
    np.testing.assert_array_equal(np.sort(base.shuffled(N)[:n_test]), test.chosen)


def test_a_share_of_nothing_tests_on_the_training_images_and_says_so(unsplit):
    build, path = unsplit
    train, test = (build(path, split, test_share=0.0) for split in ("train", "test"))
    assert len(train) == len(test) == N
    assert checksum(train) == checksum(test)
    assert test.name == f"{train.name} (training images)" and "/test" not in test.name
    assert any("of training images" in note for note in train.notes)


def test_of_one_image_none_is_held_out(tmp_path):
    save_images(tmp_path / "d", stop=1)
    assert open_folder(tmp_path / "d", "test").name == "d/train (training images)"
    assert [splits.n_held_out(n, 0.1) for n in (1, 2, 8, 15, 25, 1000)] == [0, 1, 1, 2, 2, 100]


def test_splits_are_two(unsplit):
    build, path = unsplit
    assert "'val'; allowed: test, train" in refusal(build, path, "val")


def test_hold_out_depends_on_content_alone(unsplit, tmp_path):
    """Another root, another spelling, other times of files: the same parts."""
    build, path = unsplit
    first = {split: checksum(build(path, split)) for split in ("train", "test")}
    moved = tmp_path / "elsewhere" / "deep"
    shutil.copytree(tmp_path, moved, ignore=shutil.ignore_patterns("elsewhere"))
    for file in moved.rglob("*"):
        os.utime(file, (1, 1))
    spelt = moved / ".." / "deep" / path.name
    assert {split: checksum(build(spelt, split)) for split in ("train", "test")} == first


def test_both_parts_are_of_one_reading(tmp_path):
    """In memory once, and files that come between the two readings do not move an image from one part to the other."""
    save_arrays(tmp_path / "a.npz")
    train, test = (open_arrays(tmp_path / "a.npz", split) for split in ("train", "test"))
    assert train.whole is test.whole


# ---- how splits are called


@pytest.mark.parametrize("train_name", ["train", "Train", "TRAIN"])
@pytest.mark.parametrize("test_name", ["test", "Test", "val", "VAL", "valid", "validation", "Validation"])
def test_names_of_splits(train_name, test_name, tmp_path):
    save_images(tmp_path / "d" / train_name, stop=15)
    save_images(tmp_path / "d" / test_name, start=15)
    save_arrays(tmp_path / "a" / f"{train_name}.npz", stop=15)
    save_arrays(tmp_path / "a" / f"{test_name}.npz", start=15)
    for build, path, end in ((open_folder, tmp_path / "d", ""), (open_arrays, tmp_path / "a", ".npz")):
        train, test = build(path), build(path, "test")
        assert (len(train), len(test)) == (15, N - 15)
        assert train.name.endswith(f"{train_name}{end}") and test.name.endswith(f"{test_name}{end}")
    assert len(open_arrays(f"{tmp_path}/a/{{split}}.npz", "test")) == N - 15


def test_test_goes_before_validation_and_two_of_a_name_are_refused(tmp_path):
    save_images(tmp_path / "train", stop=5)
    save_images(tmp_path / "val", stop=2)
    save_images(tmp_path / "test", start=20)
    assert open_folder(tmp_path, "test").name.endswith("/test")
    save_images(tmp_path / "Train", stop=5)
    assert "Train and train" in refusal(open_folder, tmp_path)


def test_a_test_split_that_is_the_training_split_is_none(tmp_path):
    save_images(tmp_path / "d/train")
    (tmp_path / "d/test").symlink_to(tmp_path / "d/train")
    assert "held out" in open_folder(tmp_path / "d", "test").name


def test_a_class_called_train_is_no_split(tmp_path):
    save_images(tmp_path / "d", classes=("car", "train"))
    assert "is train/ a class or the training images" in refusal(open_folder, tmp_path / "d")


def test_what_lies_beside_the_splits_is_said(tmp_path):
    for name in ("train", "test", "more"):
        save_images(tmp_path / name, stop=4)
    (note,) = open_folder(tmp_path).notes
    assert "more/" in note and "not read" in note


def test_a_test_split_alone_is_refused(tmp_path):
    save_images(tmp_path / "val")
    save_arrays(tmp_path / "a/val.npz")
    assert "but no train/" in refusal(open_folder, tmp_path)
    assert "no such file" in refusal(open_arrays, tmp_path / "a")


# ---- classes


def counted(source) -> str:
    return compare.describe_classes(source)


def test_linked_class_folders_are_classes(tmp_path):
    save_images(tmp_path / "d", stop=8, classes=("cat",))
    save_images(tmp_path / "far", stop=4, classes=("dog",))
    (tmp_path / "d/dog").symlink_to(tmp_path / "far/dog")
    source = open_folder(tmp_path / "d", test_share=0.0)
    assert counted(source) == "cat 8, dog 4"


@pytest.mark.parametrize("target", [".", "cat", "cat/deep", ".."])
def test_links_in_circles_are_read_once_and_said(target, tmp_path):
    save_images(tmp_path / "d", stop=8)
    (tmp_path / "d/cat/deep").mkdir()
    (tmp_path / "d/cat/deep/again").symlink_to(tmp_path / "d" / target)
    source = open_folder(tmp_path / "d", test_share=0.0)
    assert len(source) == 8 and counted(source) == "cat 4, dog 4"
    assert any("by another name" in note for note in source.notes)


def test_a_real_folder_goes_before_its_links(tmp_path):
    save_images(tmp_path / "d", stop=8)
    (tmp_path / "d/a_link").symlink_to(tmp_path / "d/dog")
    assert open_folder(tmp_path / "d").classes == ("cat", "dog")


def test_a_stray_picture_beside_class_folders(tmp_path):
    """An unconditional run has every image; a run that needs labels is told which file is in the way."""
    save_images(tmp_path / "d", stop=8)
    Image.fromarray(IMAGES[9]).save(tmp_path / "d" / "stray_1.png")
    source = open_folder(tmp_path / "d", test_share=0.0)
    assert len(source) == 9 and source.num_classes == 0
    assert "stray_1.png beside the folders cat, dog" in source.unlabelled
    compare.refuse_unfit(source, (8, 8, 3), 256, 0, "config declares")
    assert "stray_1.png" in refusal(compare.refuse_unfit, source, (8, 8, 3), 256, 2, "config declares")


def test_an_empty_class_is_said(tmp_path):
    save_images(tmp_path / "d", stop=8)
    (tmp_path / "d/eel").mkdir()
    source = open_folder(tmp_path / "d", test_share=0.0)
    assert source.classes == ("cat", "dog")
    assert any("eel 0" in note for note in source.notes)


def test_dataset_json_labels_its_files(tmp_path):
    """EDM's and StyleGAN's layout: folders are no classes, the file is."""
    names = [f"{i // 3:05d}/img{i:08d}.png" for i in range(6)]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(IMAGES[i]).save(tmp_path / name)
    labels = [6, 0, 2, 2, 6, 6]
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"labels": list(zip(names, labels, strict=True))}))
    source = open_folder(tmp_path, test_share=0.0)
    assert source.label.tolist() == labels and source.num_classes == 7
    assert counted(source) == "0 1, 1 0, 2 2, 3 0, 4 0, 5 0, 6 3; without images: 1, 3, 4, 5"
    wrong = {
        '{"labels": null}': "null",
        "{}": "mend or remove it",
        "[" * 100_000: "mend or remove it",
        json.dumps({"labels": [[names[0], 1]]}): f"no label of {names[1]} (5 of 6 files)",
        json.dumps({"labels": [[name, [0.0, 1.0]] for name in names]}): "[0.0, 1.0]",
        json.dumps({"labels": [[name, -1] for name in names]}): "got label -1",
    }
    for text, words in wrong.items():
        file.write_text(text)
        source = open_folder(tmp_path, test_share=0.0)
        assert source.num_classes == 0 and words in source.unlabelled and "\n" not in source.unlabelled


def test_labels_from_one_do_not_begin_a_run(tmp_path):
    save_arrays(tmp_path / "a.npz", label=np.arange(N) % 3 + 1)
    source = open_arrays(tmp_path / "a.npz")
    assert counted(source).startswith("0: 0, 1: ") and counted(source).endswith("without images: 0")
    assert "labels of a.npz run from 1 to 3" in refusal(compare.refuse_untrained_start, source)
    save_arrays(tmp_path / "b.npz", label=np.arange(N) % 3)
    compare.refuse_untrained_start(open_arrays(tmp_path / "b.npz"))


def test_the_part_that_lost_a_class_to_the_test_split_is_not_labelled_from_one(tmp_path):
    held_out = base.shuffled(N)[0]
    save_arrays(tmp_path / "a.npz", label=(np.arange(N) != held_out).astype(int))
    source = open_arrays(tmp_path / "a.npz", test_share=0.001)
    assert source.label.min() == 1
    compare.refuse_untrained_start(source)


def test_test_images_of_untrained_classes_are_refused(tmp_path):
    save_arrays(tmp_path / "train.npz", label=np.arange(N) % 3)
    save_arrays(tmp_path / "test.npz", label=np.arange(N) % 5)
    train, test = (open_arrays(tmp_path, split) for split in ("train", "test"))
    message = refusal(compare.refuse_untrained_classes, train, test)
    assert "test.npz has images of classes 3, 4, of which train.npz has none" in message
    compare.refuse_untrained_classes(test, train)
    save_arrays(tmp_path / "a.npz", label=np.arange(N))  # two classes are held out whole
    compare.refuse_untrained_classes(*(open_arrays(tmp_path / "a.npz", split) for split in ("train", "test")))


def test_labels_beyond_what_a_run_has_are_refused(tmp_path):
    save_arrays(tmp_path / "a.npz", label=np.arange(N) % 10)
    source = open_arrays(tmp_path / "a.npz")
    message = refusal(compare.refuse_unfit, source, (8, 8, 3), 256, 5, "config.data declares")
    assert "reach 9 (10 classes)" in message and "0 to 4" in message
    compare.refuse_unfit(source, (8, 8, 3), 256, 12, "config.data declares")  # more classes than these data have


# ---- whose data a state knows
