"""A folder of image files, read in place and brought to one size."""

import os
from pathlib import Path

from score_flow.data import splits
from score_flow.data.base import PATH, Source
from score_flow.data.encoded import EncodedSource, OnError, open_files, takes_reader
from score_flow.data.images import ImageReader
from score_flow.data.listing import Labels, Listing, list_images, split_folders
from score_flow.data.releases import named
from score_flow.data.walking import Paths
from score_flow.errors import UserError, check_choice
from score_flow.runs.files import existing_path


@takes_reader
def build(
    split: splits.Split = "train",
    path: str = "",
    *,
    reader: ImageReader,
    on_error: OnError = "stop",
    labels: Labels = "auto",
    test_share: splits.TestShare = 0.1,
) -> Source:
    """The png, jpg, webp, bmp, gif and tif files under a folder of `path` for the split, else `path`, by name.

    The folders are train and test (or val, valid, validation), in any case of letters; without a test folder,
    `test_share` of the training images is held out. Links to folders are followed, each folder once; hidden files are
    left out. Classes (labels = "auto") are what EDM's dataset.json says (json), without it the sub-folders, sorted
    (folder), without those what precedes the first "_" of the file names, if any name has one (prefix:
    improved-diffusion's rule). The training images name the classes of every split. Images both in and beside
    sub-folders have no classes.

    The header of every file is checked here: format, bits of a channel, and at most `max_pixels` before and after
    resizing, so that nothing larger is ever decoded. With on_error = "stop" a file that fails stops the run, now or
    when its pixels are read. With "skip" every file is decoded once now (of more than DECODED files only the ends are
    looked at), and those that fail are left out, counted and reported in one line, so that which images a run has does
    not depend on when it was interrupted; one that breaks later still stops the run.
    Of more than 10 000 files what was found is kept in a cache for the next start. Of an animation the
    first frame is read. Raises UserError.
    """
    check_choice("split", split, splits.NAMES)
    base = existing_path(path, PATH)
    if not base.is_dir():
        raise UserError(f"{PATH}: {base} is not a folder")
    stem = Path(os.path.abspath(base)).name
    train, test, beside = split_folders(base)
    listed = list_images(train, labels)
    if test and split == "test":
        return _open(f"{stem}/{test.name}", list_images(test, labels), listed.classes, reader, on_error)
    name = f"{stem}/{'train' if train is base else train.name}"
    if test:
        return _open(name, listed, listed.classes, reader, on_error, beside)
    key = "folder", train.resolve(), listed, reader, on_error
    whole = splits.shared(key, lambda: _open(name, listed, listed.classes, reader, on_error))
    return splits.share_out(whole, split, test_share, stem)


def _open(
    name: str,
    listed: Listing,
    classes: tuple[str, ...],
    reader: ImageReader,
    on_error: OnError,
    beside: tuple[str, ...] = (),
) -> EncodedSource:
    """Return the files that can be used, labelled by the classes if they have them."""
    label = listed.labels(classes)
    return open_files(
        named(name, len(listed.files)), Paths(listed.root, listed.files), reader, on_error,
        label=label, classes=classes, notes=(*beside, *listed.notes),
        unlabelled=listed.strange(classes) if label is None else "",
    )  # fmt: skip
