"""Small files of the layouts that people have, byte for byte as their writers make them."""

import functools
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboardX.record_writer import RecordWriter

from score_flow.errors import UserError


def noise(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


N = 12
IMAGES = noise(N, 8, 8, 3)


def expect(source, images, labels=None):
    """The source holds these images and labels."""
    examples = source.read(np.arange(len(source)))
    np.testing.assert_array_equal(examples["image"], images)
    assert ("label" in examples) == (labels is not None)
    if labels is not None:
        assert examples["label"].tolist() == list(labels)


def refusal(build, *args, **fields) -> str:
    """What the one line says."""
    with pytest.raises(UserError) as error:
        build(*args, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def planes(image):
    """(n, h, w, c) -> (n, c h w), as CIFAR and the ImageNet batches lay them."""
    return np.ascontiguousarray(image.transpose(0, 3, 1, 2)).reshape(len(image), -1)


def png(image) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


PNGS = [png(image) for image in IMAGES]


def tar_of(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def zip_of(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """method: of zipfile, or True for deflated."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if method is True else int(method)) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


@functools.cache  # tfds registers a builder once
def tfds_builder():
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # no file of checksums beside it

        def _info(self):
            fields = {"image": tfds.features.Image(shape=(4, 6, 3)), "label": tfds.features.ClassLabel(num_classes=3)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(fields))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(noise(10, 4, 6, 3)):
                png = io.BytesIO()  # an array would need TensorFlow to encode it
                Image.fromarray(image).save(png, "PNG")
                png.seek(0)
                yield i, {"image": png, "label": i % 3}

    tfds.disable_progress_bar()
    return Tiny


# ---- CIFAR: pickles of Python 2, protocol 2, opcode by opcode as its cPickle and numpy 1 wrote them


def _text(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def _ints(values) -> bytes:
    body = b"".join(b"K" + bytes([v]) if v < 256 else b"M" + struct.pack("<H", v) for v in map(int, values))
    return b"](" + body + b"e"


def _array(image) -> bytes:
    """numpy.core.multiarray._reconstruct(ndarray, (0,), "b"), then its state: version, shape, dtype, order, bytes."""
    n, width = image.shape
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85q\tU\x01b\x87Rq\n(K\x01"
        + b"J" + struct.pack("<i", n) + b"M" + struct.pack("<H", width) + b"\x86"
        + b"cnumpy\ndtype\nq\x0bU\x02u1K\x00K\x01\x87Rq\x0c(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T" + struct.pack("<i", image.size) + image.tobytes() + b"tb"
    )  # fmt: skip


def _dict(**items: bytes) -> bytes:
    return b"\x80\x02}q\x01(" + b"".join(_text(name) + value for name, value in items.items()) + b"u."


def cifar_batch(image, **labels) -> bytes:
    """A batch of the python version."""
    names = b"](" + b"".join(_text(f"{i:06d}.png") for i in range(len(image))) + b"e"
    lists = {name: _ints(values) for name, values in labels.items()}
    return _dict(batch_label=_text("training batch 1 of 5"), **lists, data=_array(planes(image)), filenames=names)


def cifar_meta(**names) -> bytes:
    lists = {key: b"](" + b"".join(map(_text, each)) + b"e" for key, each in names.items()}
    return _dict(num_cases_per_batch=b"M\x10'", **lists, num_vis=b"M\x00\x0c")


CLASSES = ("airplane", "automobile", "bird")


def cifar10(n: int = 2, binary: bool = False) -> tuple[dict[str, bytes], dict[str, tuple]]:
    """Return the files of CIFAR-10, five batches of n images and a test batch; (images, labels) of each split."""
    image, label = noise(6 * n, 32, 32, 3), np.arange(6 * n) % len(CLASSES)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    parts = [(image[i * n : (i + 1) * n], label[i * n : (i + 1) * n]) for i in range(6)]
    if binary:
        files = {f"{name}.bin": cifar_rows(each, labels) for name, (each, labels) in zip(names, parts, strict=True)}
        files["batches.meta.txt"] = ("\n".join(CLASSES) + "\n\n").encode()
    else:
        files = {name: cifar_batch(each, labels=labels) for name, (each, labels) in zip(names, parts, strict=True)}
        files |= {"batches.meta": cifar_meta(label_names=CLASSES), "readme.html": b"<html></html>"}
    return files, {"train": (image[: 5 * n], label[: 5 * n]), "test": (image[5 * n :], label[5 * n :])}


def cifar100(n: int = 4, binary: bool = False) -> tuple[dict[str, bytes], dict[str, tuple]]:
    """Return the files of CIFAR-100 and the (images, fine labels, coarse labels) of each split."""
    image, fine = noise(2 * n, 32, 32, 3), np.arange(2 * n) % 4
    names = {"fine": ("apple", "aquarium_fish", "baby", "bear"), "coarse": ("fish", "fruit")}
    parts = {"train": (image[:n], fine[:n], fine[:n] // 2), "test": (image[n:], fine[n:], fine[n:] // 2)}
    if binary:
        files = {f"{split}.bin": cifar_rows(part[0], part[2], part[1]) for split, part in parts.items()}
        files |= {f"{kind}_label_names.txt": "\n".join(each).encode() for kind, each in names.items()}
    else:
        files = {s: cifar_batch(part[0], fine_labels=part[1], coarse_labels=part[2]) for s, part in parts.items()}
        files["meta"] = cifar_meta(fine_label_names=names["fine"], coarse_label_names=names["coarse"])
    return files, parts


def cifar_rows(image, *labels) -> bytes:
    """A batch of the binary version."""
    return np.concatenate([*(np.asarray(each, np.uint8)[:, None] for each in labels), planes(image)], axis=1).tobytes()


# ---- TFRecord: the frames by tensorboardX, the Examples by hand


def _varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def example(**features) -> bytes:
    """An Example of bytes, whole numbers (packed), or floats, each one value or a list."""
    entries = b""
    for name, values in features.items():
        values = values if isinstance(values, list | tuple) else [values]
        if isinstance(values[0], bytes):
            feature = _message(1, b"".join(_message(1, value) for value in values))
        elif isinstance(values[0], float):
            feature = _message(2, _message(1, np.asarray(values, "<f4").tobytes()))
        else:
            feature = _message(3, _message(1, b"".join(_varint(int(value) % (1 << 64)) for value in values)))
        entries += _message(1, _message(1, name.encode()) + _message(2, feature))
    return _message(1, entries)


def write_tfrecord(file: Path, records) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = RecordWriter(str(file))
    for record in records:
        writer.write(record)
    writer.close()
    return file


def stylegan(folder: Path, image, onehot=None, stem: str = "ffhq") -> None:
    """StyleGAN's folder: a file for each power of two up to the size, and the labels beside."""
    for log in range(2, int(np.log2(image.shape[1])) + 1):
        small = image[:, :: image.shape[1] >> log, :: image.shape[1] >> log]
        rows = small.transpose(0, 3, 1, 2)
        records = (example(shape=list(row.shape), data=row.tobytes()) for row in rows)
        write_tfrecord(folder / f"{stem}-r{log:02d}.tfrecords", records)
    if onehot is not None:
        with open(folder / f"{stem}-rxx.labels", "wb") as file:
            np.save(file, onehot.astype(np.float32))


def write_parquet(file: Path, images: list[bytes], labels, names=(), *, metadata: bytes = b"") -> Path:
    """In the layout of Hugging Face's datasets: a column {bytes, path}, and what columns are in the metadata."""
    import pyarrow
    from pyarrow.parquet import write_table

    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    schema = pyarrow.schema(
        [
            ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            ("label", pyarrow.int64()),
        ],
        metadata={b"huggingface": metadata or json.dumps({"info": {"features": features}}).encode()},
    )
    rows = {"image": [{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)], "label": list(labels)}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.table(rows, schema), file, row_group_size=4)
    return file


def write_lmdb(folder: Path, values: dict[bytes, bytes]) -> Path:
    import lmdb

    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 22) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return folder


def idx(values) -> bytes:
    """An idx file of bytes."""
    values = np.asarray(values, np.uint8)
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.tobytes()


def npz(**arrays) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def save_all(folder: Path, files: dict[str, bytes]) -> None:
    """Write files by their paths in a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def save(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def emoji_package(folder: Path, signs) -> Path:
    """emoji-datasource-twitter with pictures of noise: signs are (unified, category, skin tones, of the set or not)."""
    table, files = [], {}
    for i, (unified, category, tones, there) in enumerate(signs):
        points = [unified, *(f"{unified}-{tone}" for tone in tones)]
        entries = [{"unified": p, "image": f"{p.lower()}.png", "has_img_twitter": there} for p in points]
        table.append(entries[0] | {"name": f"SIGN {i}", "short_name": f"sign_{i}", "category": category})
        if tones:
            table[-1]["skin_variations"] = dict(zip(tones, entries[1:], strict=True))
        pictures = noise(len(points), 64, 64, 4, seed=i)
        files |= {f"img/twitter/64/{e['image']}": png(x) for e, x in zip(entries, pictures, strict=True) if there}
    save_all(folder, files | {"emoji.json": json.dumps(table).encode(), "package.json": b"{}"})
    return folder
