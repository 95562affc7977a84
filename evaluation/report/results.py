"""What an evaluation found, written down: results.json for programs, results.txt with one line a figure for people."""

import math
from typing import Any

import numpy as np

from score_flow.config.loading import flatten
from score_flow.data.base import ArraySource, Source, checksum
from score_flow.runs import files, places

WHOLE = 2**28  # pixels of a split up to which all are hashed
ENDS = 1000  # else the first so many images and the last
ERROR = "standard_error"
COUNTED = ("n_samples", "n_images")  # what figures are of, whatever else is counted
OF_KEPT = ("kid", "precision", "recall")  # figures of those samples alone whose features are kept
OVER_STEPS = {  # of checkpoints
    "bits_per_dim": "bits / dim",
    "fid": "FID",
    "fd_dinov2": "FD-DINOv2",
    "sfid": "sFID",
    "frechet_distance": "Fréchet distance",
}


def read(file: places.Place) -> dict[str, Any]:
    """Read the figures of a result.json; none of one that was not written whole."""
    return {name: value for name, value in (files.json_at(file) or {}).items() if name != "key"}


def write(
    directory: places.Place, results: dict[str, dict[str, Any]], *, facts: dict[str, Any], setting: dict[str, Any]
) -> None:
    """Write directory/results.json, {job: result} beside the facts, and results.txt; each whole or not at all.

    setting: what `lines` says of every figure.
    """
    files.write_json(directory / "results.json", results | facts)
    files.write_whole(directory / "results.txt", "".join(f"{line}\n" for line in lines(results, **setting)))


def lines(
    results: dict[str, dict[str, Any]],
    *,
    weights: str,
    sampler: str = "",
    checksums: dict[str, str] | None = None,
    split: str = "",
    version: str = "",
    options: frozenset[str] = frozenset(),
) -> list[str]:
    """Write a line a figure: job.figure = value +- error; n; calls; data; reference; weights; sampler; evaluator.

    The error of a mean over seeds is the deviation over them, which it says.
    checksums: of splits by their name; split: the one that results without a `split` were compared with; options: the
    names of config.eval, whose values among a result are no figures; version: of this program.
    """
    found = []
    for job, result in results.items():
        data = result.get("split", split)
        counts = [key for key in result if key.startswith("n_") and key not in options]
        n = next((key for key in (*COUNTED, *counts) if key in counts), None)
        calls = next(
            (f"{v:g} {k.replace('_per_', ' per ').replace('_', ' ')}" for k, v in result.items() if "calls" in k), ""
        )
        about = [
            calls,
            ", ".join(["data " + data, *([result["subset"]] if "subset" in result else [])])
            + (f" ({checksums[data]})" if checksums and data in checksums else ""),
            reference_of(result),
            f"weights {weights}" if weights else "",
            with_what(result, sampler if n == "n_samples" else ""),
        ]
        for name, value, error in figures(result, options):
            if name.removesuffix("_std") != name and "n_seeds" in result:
                continue  # beside its mean
            spread = f" +- {error:.2g}" if math.isfinite(error) else over_seeds(result, name)
            features = result.get(f"features_{name}") or result.get("features")
            evaluator = f"evaluator {result.get('evaluator') or features or job}"
            of = [how_many(result, n, name) if n else "", *about, evaluator, f"score_flow {version}" if version else ""]
            said = [part for part in of if part and part != "data "]
            found.append("; ".join([f"{called(job, result)}.{name} = {value:.6g}{spread}", *said]))
    return found


def how_many(result: dict[str, Any], n: str, name: str) -> str:
    """Say of how many samples, or images, a figure is: all, or those whose features are kept."""
    kept = result.get("n_kept", result[n]) if name.startswith(OF_KEPT) else result[n]
    return f"{result[n]} {n[2:]}" + (f", {kept} of them kept" if kept < result[n] else "")


def over_seeds(result: dict[str, Any], name: str) -> str:
    """Return the deviation of a mean over seeds, and which seeds; nothing of a figure of one."""
    if f"{name}_std" not in result:
        return ""
    seeds = ", ".join(str(figures["seed"]) for figures in result["by_seed"])
    return f" +- {result[f'{name}_std']:.2g} over seeds {seeds}"


def reference_of(result: dict[str, Any]) -> str:
    """Name the file of statistics that samples were compared with, without the folder that it lies in here."""
    if "reference" not in result:
        return ""
    return f"reference {result['reference'].rpartition('/')[2]} (sha256 {result['reference_sha256'][:16]})"


def called(job: str, result: dict[str, Any]) -> str:
    """Name a job for people: FID is said of a result that is one alone, of Inception's features."""
    return "frechet" if job == "fid" and "fid" not in result else job


def with_what(result: dict[str, Any], sampler: str) -> str:
    """Name the solver or sampler of a result, and whose labels its samples have."""
    said = [f"{kind} {result[kind]}" for kind in ("solver", "sampler", "images") if kind in result]
    said = said or ([f"sampler {sampler}"] if sampler else [])
    return "; ".join([*said, *([f"labels {result['labels']}"] if "labels" in result else [])])


def figures(result: dict[str, Any], options: frozenset[str] = frozenset()) -> list[tuple[str, float, float]]:
    """List (name, value, standard error or nan) of every number of a result that is neither a count nor an option.

    The error of `x` is `x_standard_error`; a plain `standard_error` is that of the figure before it.
    """
    flat, found, before = flatten(result), [], None
    for name, value in flat.items():
        if name == ERROR and before is not None:
            found[-1] = (*found[-1][:2], float(value))
        figure = type(value) is float and not name.endswith(ERROR) and "calls" not in name and name not in options
        before = name if figure else None
        if figure:
            found.append((name, value, float(flat.get(f"{name}_{ERROR}", math.nan))))
    return found


def identity(source: Source) -> str:
    """Compute the SHA-256 of a split, shortened; of a huge one, that of its ends, which it then says."""
    n = len(source)
    if n * math.prod(source.image_shape) <= WHOLE:
        return f"sha256 {checksum(source)}"
    part = source.read(np.r_[:ENDS, n - ENDS : n])
    ends = ArraySource(source.name, part["image"], part.get("label"), source.levels, source.num_classes)
    return f"sha256 {checksum(ends)} of the first and last {ENDS} of {n:,} images"
