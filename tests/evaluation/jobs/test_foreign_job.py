"""A job of a package of one's own, by its dotted name: run, keyed, gone on with, refused and shown as ours are."""

import json
import sys

import jax
import pytest

from evaluation.jobs.base import by_place, find
from main import EXIT_USER_ERROR, main
from score_flow import FIGURES, __version__
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.runs.checkpoint import Checkpoints
from tests.launch import TINY

NAME = "my_lab.brightness"
BRIGHTNESS = '''
from evaluation.jobs.base import Job
from evaluation.jobs.rounds import per_image
from evaluation.report import page

def build(context, opened):
    """Mean level of the split."""
    def levels(params, batch, seeds):
        return {"level": batch["image"].astype(float).mean(axis=(1, 2, 3))}, None

    return per_image(context, levels, lambda state: {"mean_level": float(state["level"].mean())} | context.about())

def section(record):
    return page.section("Brightness", f"<p>{record.results[__name__]['mean_level']:.3f}</p>")

job = Job(build, needs=frozenset({"split", "pixels"}), reads=("smallest_time",), section=section)
'''
OFF = [f"--config.eval.enable_{name}=False" for name in ("loss", "sampling", "bpd")]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A package on the path, and the workdir of a run with one milestone."""
    folder, workdir = tmp_path / "my_lab", tmp_path / "run"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "brightness.py").write_text(BRIGHTNESS)
    (folder / "typo.py").write_text(BRIGHTNESS.replace('"pixels"', '"pixel"'))
    (folder / "blind.py").write_text(BRIGHTNESS.replace('"smallest_time"', '"smallest_tim"'))
    (folder / "alone.py").write_text(BRIGHTNESS.replace("Job(build,", "dict(build=build,"))
    monkeypatch.syspath_prepend(tmp_path)
    config = load("configs/digits.py", TINY[1:])
    params = jax.jit(experiment(config).init)(jax.random.key(0))
    milestones = Checkpoints(workdir / "checkpoints")
    meta = {"config": json.loads(config.to_json()), "weights": {"raw": "raw", "ema": "ema"}}
    milestones.save(40, {"params": params, "ema": [params] * 2}, meta, wait=True)
    milestones.close()
    (workdir / "config.json").write_text(config.to_json())
    yield workdir
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def evaluated(workdir, *flags, jobs=(NAME,)):
    return main([f"--workdir={workdir}", "--mode=eval", *OFF, f"--config.eval.jobs={jobs!r}", *flags])


def test_it_is_run_keyed_and_shown(lab, capsys):
    assert evaluated(lab) == 0
    folder = lab / "eval" / "40"
    result = json.loads((folder / NAME / "result.json").read_text())
    levels = experiment(load("configs/digits.py", TINY[1:])).test_source.image
    assert result["mean_level"] == pytest.approx(levels.mean(), rel=1e-6)  # sums of whole numbers in float32
    assert result["key"]["job"] == NAME
    assert result["key"]["eval"].keys() == {"smallest_time", "bpd_dataset", "num_images"}
    assert f"{NAME}.mean_level = {result['mean_level']:.6g}; 297 images" in (folder / "results.txt").read_text()
    written = json.loads((folder / "results.json").read_text())
    assert written[NAME]["mean_level"] == result["mean_level"]
    assert (written["version"], result["key"]["version"]) == (__version__, FIGURES)
    page = (lab / "report.html").read_text()
    assert (
        f"<h2>Brightness</h2>\n<p>{result['mean_level']:.3f}</p>" in page and f"score_flow {written['version']}" in page
    )
    # Done, it is read; other settings are refused; another evaluation's page shows it too.
    time = (folder / NAME / "result.json").stat().st_mtime_ns
    assert evaluated(lab, "--config.eval.batch_size=7") == 0
    assert (folder / NAME / "result.json").stat().st_mtime_ns == time
    capsys.readouterr()
    assert evaluated(lab, "--config.eval.smallest_time=0.1") == EXIT_USER_ERROR
    assert "eval.smallest_time is 1e-05 there and 0.1 here" in capsys.readouterr().err
    assert evaluated(lab, jobs=()) == 0
    assert "<h2>Brightness</h2>" in (lab / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my_lab.typo", "needs is 'pixel'; allowed: .* Did you mean 'pixels'"),
        ("my_lab.blind", "reads is 'smallest_tim'; allowed: .* Did you mean 'smallest_time'"),
        ("my_lab.alone", "the `job` of my_lab.alone is a dict; it must be a Job"),
        ("my_lab.none", "my_lab has no module none, but: alone, blind, brightness, typo"),
    ],
)
def test_what_is_wrong_with_it_is_said(lab, name, said):
    with pytest.raises(UserError, match=said):
        find(name)


def test_one_whose_package_is_gone_is_left_out_of_the_page(lab):
    assert list(by_place(["loss", "no_lab.x", NAME, "samples"])) == ["samples", "loss", NAME]
