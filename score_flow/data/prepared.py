"""A data set that TFDS prepared as TFRecord, as a source: for `tfds` by its name, for `tfrecord` by its folder."""

from score_flow.data import records, splits
from score_flow.data.base import Source
from score_flow.data.formats import tfrecord
from score_flow.data.formats.spans import Spans
from score_flow.data.formats.tfds_folder import Prepared
from score_flow.data.images import ImageReader
from score_flow.errors import UserError


def open_split(found: Prepared, split: str, test_share: float, reader: ImageReader | None = None) -> Source:
    """Open a split; images of one size, or with a reader of any. Raises UserError.

    The test split is `test`, else `validation` (or another of its names), else a share that is held out.
    """
    train, test = (next((name for name in splits.NAMES[each] if found.splits.get(name)), None) for each in splits.NAMES)
    if train is None:
        has = ", ".join(name for name, files in found.splits.items() if files)
        raise UserError(f"{found.folder}: no TFRecord files of a split called train; there are: {has or 'none'}")
    if split == "test" and test:
        return _open(found, test, reader)
    whole = _open(found, train, reader)
    return whole if test else splits.share_out(whole, split, test_share, found.name)


def _open(found: Prepared, split: str, reader: ImageReader | None) -> records.RecordSource:
    spans = tfrecord.open_files(found.splits[split])
    if len(spans) != found.n[split]:
        raise UserError(
            f"{found.folder}: {split} has {len(spans)} records, of {found.n[split]} that it says: files missing?"
        )
    shape = found.image_shape or _shape_of_first(found, spans)
    if reader:
        picture, shape = records.fitted(found.image, reader), reader.shape
    elif len(shape) != 3 or None in shape or shape[2] not in (1, 3):
        got = f"{found.name} has images of shape {shape}; allowed: of one size, of 1 or 3 channels"
        with_size = f"config.data.source.name=tfrecord with path={found.folder} brings them to an image_size"
        raise UserError(f"config.data.source.dataset: {got} ({with_size})")
    else:
        picture = records.of_one_size(found.image, shape)
    name = f"{found.name}/{split}"
    return records.RecordSource(
        name, spans, picture, shape, label_name=found.label, num_classes=found.num_classes, classes=found.classes,
        **(records.of_reader(reader) if reader else {}),
    )  # fmt: skip


def _shape_of_first(found: Prepared, spans: Spans) -> tuple[int, ...]:
    """Return the shape of the first image: what TFDS before version 4 wrote does not say it."""
    place = f"{spans.place(0)}: record 0"
    content = records.encoded(tfrecord.read(spans, 0), found.image, place)
    return *(records.size_of(content) or ()), records.channels_of(content, place)
