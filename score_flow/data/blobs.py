"""Image files that lie in larger ones: few bytes are looked at when they are opened, many when they are read."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from score_flow.data.encoded import EncodedSource, OnError, open_files
from score_flow.data.images import File, ImageReader
from score_flow.errors import UserError

LOOKED_AT = 1 << 30  # bytes


def open_blobs(
    name: str,
    files: Sequence[File],
    reader: ImageReader,
    on_error: OnError,
    *,
    size: int,
    label: Int32[np.ndarray, "n"] | None = None,
    classes: Sequence[str] = (),
    unlabelled: str = "",
    notes: tuple[str, ...] = (),
) -> EncodedSource:
    """Make a source of files of `size` bytes together. Raises UserError, of many bytes for the first file alone."""
    rest = dict(label=label, classes=classes, unlabelled=unlabelled, notes=notes)
    if size <= LOOKED_AT or on_error == "skip":
        return open_files(name, files, reader, on_error, **rest)
    if refused := reader.check(files[0]).refused:
        raise UserError(refused)
    decoding = {"background": reader.background, "upright": reader.upright}  # whether any file differs by them or not
    return EncodedSource(name, files, reader=reader, decoding=decoding, **rest)
