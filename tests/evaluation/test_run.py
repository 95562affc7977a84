"""What an evaluation writes: a line a figure with all that it depends on, and the identity of its data."""

import math

import numpy as np
import pytest

from evaluation.fold import Fold
from evaluation.jobs.base import asked
from evaluation.report import results as written
from evaluation.report.results import figures, identity, lines
from evaluation.run import run_job
from score_flow.config.loading import load
from score_flow.data.base import ArraySource, checksum
from score_flow.errors import Preempted
from score_flow.runs.preemption import Preemption

RESULT = {
    "bits_per_dim": 1.9231, "standard_error": 0.0142, "n_images": 297, "repeats": 1, "split": "digits/test",
    "n_probes": 1, "network_calls_per_image": 319.0, "solver": "tsit5 rtol 0.0001", "smallest_time": 1e-5,
    "latent": {"power": 0.98}, "by_time": [1.0, 2.0],
}  # fmt: skip
FID = {
    "n_samples": 256,
    "sampler": "ddim n_steps=5",
    "labels": "in turn",
    "fid": 15.2,
    "kid": 1.75,
    "kid_standard_error": 0.16,
    "features": "small",
    "split": "a/train",
}
SETTING = {
    "weights": "EMA 0.999 at step 9", "sampler": "name=ddim", "checksums": {"digits/test": "sha256 ab"},
    "split": "digits/test", "options": frozenset({"smallest_time", "n_probes"}),
}  # fmt: skip


def test_a_line_a_figure():
    got = lines({"likelihood": RESULT, "fid": FID}, **SETTING)
    about = (
        "297 images; 319 network calls per image; data digits/test (sha256 ab); weights EMA 0.999 at step 9; "
        "solver tsit5 rtol 0.0001; evaluator likelihood"
    )
    assert got[:2] == [
        f"likelihood.bits_per_dim = 1.9231 +- 0.014; {about}",
        f"likelihood.latent.power = 0.98; {about}",
    ]
    about = "256 samples; data a/train; weights EMA 0.999 at step 9; "
    about += "sampler ddim n_steps=5; labels in turn; evaluator small"
    assert got[2:] == [f"fid.fid = 15.2; {about}", f"fid.kid = 1.75 +- 0.16; {about}"]


def test_errors_belong_to_their_figures():
    """A plain standard error is that of the figure before it; counts, options and errors are no figures."""
    assert figures({"n": 3, "loss": 1.0, "standard_error": 0.5, "x": 2.0, "y": 3.0, "x_standard_error": 0.25}) == [
        ("loss", 1.0, 0.5), ("x", 2.0, 0.25), ("y", 3.0, pytest.approx(math.nan, nan_ok=True)),
    ]  # fmt: skip
    assert figures({"n": 3, "standard_error": 0.5, "smallest_time": 0.1}, frozenset({"smallest_time"})) == []


def test_identity_of_a_split(monkeypatch):
    """Of every pixel where that is cheap; of its ends, which it says, where it is not."""
    image = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
    source = ArraySource("a", image)
    assert identity(source) == f"sha256 {checksum(source)}"
    monkeypatch.setattr(written, "WHOLE", image.size - 1)
    monkeypatch.setattr(written, "ENDS", 5)
    huge = identity(source)
    assert huge.endswith("of the first and last 5 of 50 images")
    for place, same in ((4, False), (5, True), (44, True), (45, False)):
        other = image.copy()
        other[place, 0, 0, 0] ^= 1
        assert (identity(ArraySource("a", other)) == huge) == same


def test_stopped_between_jobs(tmp_path):
    preemption = Preemption()
    preemption.signalled = True
    with pytest.raises(Preempted, match="before the job loss"):
        run_job(
            Fold({}, lambda state: 1, dict, lambda state: state, lambda state: {}),
            tmp_path,
            "loss",
            of="step 1",
            preemption=preemption,
        )


def test_jobs_of_a_config():
    config = load("configs/digits.py", ["--config.eval.enable_sampling=False", "--config.eval.jobs=('latents',)"])
    assert list(asked(config.eval)) == ["loss", "likelihood", "latents"]
