"""How many images a second a core reads, and how many cores feed 4 000 images/s: packed, JPEG files, latents.

Examples are read in random order, as a step reads them, from files that are made here: packed images of 32 and 256
pixels, JPEG files of 500 x 375 pixels brought to 256, latents of 32 x 32 x 4. What counts is the time of the processor,
of all threads together, so that other work on the machine changes little; the files are in the system's cache.

    python -m benchmarks.loader
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measure import MIN_TRIALS, Options, Row, main, row
from evaluation.modes.pack import pack_split
from score_flow.config.options import Config
from score_flow.data import folder, packed
from score_flow.data.base import ArraySource, Source
from score_flow.data.latents import LatentSource

WANTED = 4000  # images/s, of a node of 8 fast accelerators
FILES, SIZE = 128, (375, 500)  # JPEG files, as ImageNet's in the middle


def measure(config: Config, options: Options) -> Iterable[Row]:
    """A row for each kind of source."""
    with tempfile.TemporaryDirectory() as place:
        for name, make in SOURCES.items():
            source = make(Path(place) / name)
            yield of_source(f"loader_{name}", source, options)


def of_source(name: str, source: Source, options: Options) -> Row:
    """The row of one source: images/s a core, and 4 000 images/s in cores."""
    rng, seconds, walls = np.random.default_rng(0), [], []
    read = lambda: source.read(rng.integers(0, len(source), options.batch))  # noqa: E731
    read()
    end = time.perf_counter() + options.seconds
    while len(seconds) < MIN_TRIALS or time.perf_counter() < end:
        wall, start = time.perf_counter(), time.process_time()
        read()
        seconds.append(time.process_time() - start)
        walls.append(time.perf_counter() - wall)
    rates = options.batch / np.maximum(np.array(seconds), 1e-9)
    shape, on_all = list(source.image_shape), options.batch / float(np.median(walls))
    return row(
        name, rates, "images/s/core", WANTED / rates, f"{WANTED} images/s: so many cores read them", None,
        batch_size=options.batch, shape=shape, images_per_second=on_all,
    )  # fmt: skip


def packed_of(side: int, n: int) -> Callable[[Path], Source]:
    """Make a packed data set of n images of a size."""

    def make(place: Path) -> Source:
        image = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8)
        source = ArraySource("noise", image, np.zeros(n, np.int32), num_classes=1)
        pack_split(source, place / "train", packed.described(source))
        return packed.build("train", str(place))

    return make


def jpeg_files(place: Path) -> Source:
    """Make a folder of JPEG files about as detailed as photographs."""
    rng = np.random.default_rng(0)
    for i in range(FILES):
        coarse = Image.fromarray(rng.integers(0, 256, (SIZE[0] // 6, SIZE[1] // 6, 3), np.uint8))
        (place / str(i % 10)).mkdir(parents=True, exist_ok=True)
        coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(place / str(i % 10) / f"{i}.jpg", quality=90)
    return folder.build("train", str(place), image_size=256, test_share=0.0)


def latent_moments(place: Path, n: int = 4096) -> Source:
    """Make latents as `--mode=encode` leaves them."""
    place.mkdir()
    for name in ("mean", "std"):
        np.save(place / f"{name}.npy", np.random.default_rng(0).standard_normal((n, 32, 32, 4), np.float32))
    mean, std = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("mean", "std"))
    return LatentSource("latents", mean, std, np.zeros(n, np.int32), 1)


SOURCES: dict[str, Callable[[Path], Source]] = {
    "packed_32": packed_of(32, 20_000),
    "packed_256": packed_of(256, 1_000),
    "jpeg_256": jpeg_files,
    "latents_32": latent_moments,
}

if __name__ == "__main__":
    sys.exit(main(measure))
