"""Small files of the layouts that people have, byte for byte as their writers make them."""

import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np


def noise(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def planes(image):
    """(n, h, w, c) -> (n, c h w), as CIFAR and the ImageNet batches lay them."""
    return np.ascontiguousarray(image.transpose(0, 3, 1, 2)).reshape(len(image), -1)


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


def save(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
