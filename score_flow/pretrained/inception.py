"""The weights of the FID's InceptionV3 from a local file: the published .pth, or the same in .npz or .safetensors."""

import functools
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from score_flow.networks.inception import SIZE, InceptionV3
from score_flow.pretrained.base import Layout, Leaf, Tensors, as_dtype, conv, dense, fill, same
from score_flow.pretrained.readers import files, torch_legacy
from score_flow.runs.files import arrays_of, sha256_of
from score_flow.runs.places import local, place_of
from score_flow.types import UserError, one_line

FILE = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # its name carries the first eight digits
HOW = f"get the published weights by: curl -LO {URL}, and name the file by --config.eval.extractor.weights="

LAYERS = {  # the end of our names: that of the published ones, and what makes the tensor ours
    "conv/kernel": ("conv.weight", conv),
    "bn/scale": ("bn.weight", same),
    "bn/bias": ("bn.bias", same),
    "bn/mean": ("bn.running_mean", same),
    "bn/variance": ("bn.running_var", same),
    "fc/kernel": ("fc.weight", dense),
    "fc_bias": ("fc.bias", same),
}
COUNTER = "bn.num_batches_tracked"  # steps of a training that is over: a copy of the file may have dropped them
MAX_BYTES = 1 << 30  # of what an .npz unpacks to: ten times what the network takes
MOST_TENSORS = 10_000  # that a file may hold; this one has 472 and 94 counters


def load(path: str | Path, dtype: str = "float32") -> tuple[InceptionV3, PyTree, str]:
    """(network, parameters, SHA-256 of the file), every tensor of the file used once.

    `dtype` is that of the computation; the parameters are float64 for "float64", else float32. Raises UserError: first
    of all for a file that is not there, then for the published one when damaged, and for tensors that do not fit.
    """
    file = local(place_of(path))
    if not str(path) or not file.is_file():
        got = f"no such file: {path}" if str(path) else "no file of weights is given"
        raise UserError(f"InceptionV3 of the FID: {got}; {HOW}")
    digest = checksum(file)
    try:
        params = params_of(_read(file))
    except UserError as error:
        raise UserError(f"{file}: {str(error).removeprefix(f'{file}: ').removesuffix('.')}; {HOW}") from error
    known = "as published" if digest == SHA256 else f"not the published file, {SHA256[:8]}..."
    print(f"InceptionV3 of the FID: {file.name}, sha256 {digest}, {known}; every tensor used once", flush=True)
    return InceptionV3(dtype), as_dtype(params, "float64" if dtype == "float64" else "float32"), digest


def checksum(file: Path) -> str:
    """SHA-256 of a file; raises UserError unless it begins as the name of a .pth promises (name-<hex digits>.pth)."""
    digest = sha256_of(file)
    promised = re.search(r"-([0-9a-f]{8,64})\.pth$", file.name)
    if promised and not digest.startswith(promised[1]):
        raise UserError(f"{file}: damaged: its sha256 is {digest[:16]}... and its name says {promised[1]}; {HOW}")
    return digest


def params_of(tensors: Tensors) -> PyTree:
    """Make our parameters from tensors under their published names; UserError, by name, for those that do not fit."""
    leaves, counters = {}, {}
    for path in flatten_dict(_shapes(), sep="/"):
        end = next(end for end in LAYERS if path.endswith(end))
        theirs, read = LAYERS[end]
        prefix = path.removesuffix(end).replace("/", ".")
        leaves[path] = Leaf((prefix + theirs,), read)
        if end.startswith("bn/"):
            counters[prefix + COUNTER] = None
    return fill(_shapes(), Layout(leaves, counters), tensors)


@functools.cache
def _shapes() -> PyTree:
    return jax.eval_shape(InceptionV3().init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))["params"]


def _read(file: Path) -> Tensors:
    """Read named arrays, whatever the format, told by the content; nothing in a file is run."""
    try:
        tensors = _parse(file)
    except UserError:
        raise
    except Exception as error:  # hostile bytes raise almost anything
        raise UserError(f"cannot be read; truncated or damaged? ({one_line(error)[:200]})") from error
    named = isinstance(tensors, dict) and all(type(name) is str and name.isprintable() for name in tensors)
    if not named or len(tensors) > MOST_TENSORS:
        raise UserError(f"holds no named tensors, or more than {MOST_TENSORS}")
    return tensors


def _parse(file: Path) -> Any:
    with file.open("rb") as stream:
        head = stream.read(len(torch_legacy.MAGIC))
    if head == torch_legacy.MAGIC:
        return torch_legacy.read(file)
    if head.startswith(b"PK") and _is_npz(file):
        return arrays_of(file, most=MAX_BYTES)
    return files.read(file)


def _is_npz(file: Path) -> bool:
    """Say whether a zip is an .npz; torch's files are zips too."""
    with zipfile.ZipFile(file) as archive:
        return all(name.endswith(".npy") for name in archive.namelist())
