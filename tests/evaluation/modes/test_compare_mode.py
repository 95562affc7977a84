"""--mode=compare: what it takes, what it refuses in one line, and the page that it writes."""

import json
import shutil

import pytest

from evaluation.modes.compare import names
from main import EXIT_USER_ERROR, main
from score_flow.runs.places import place_of
from score_flow.training import history
from tests.evaluation.report.test_report import Page
from tests.training.test_accepting import config_of, saver_of, state_of


def make_run(workdir, *flags, step=40):
    """A run with a state at a step, and figures of it."""
    config = config_of(*flags)
    workdir.mkdir()
    saver = saver_of(workdir, config, facts={"name": "digits/train", "n": 1500, "first": "abc"})
    saver.finish(step, state_of(config, step), milestone=step == 40)
    saver.close()
    (workdir / "config.json").write_text(config.to_json())
    (workdir / "metrics.jsonl").write_text('{"step": 20, "loss": 1.5, "seconds": 2.0}\n')
    job = workdir / "eval" / str(step) / "likelihood"
    job.mkdir(parents=True)
    (job / "result.json").write_text(json.dumps({"bits_per_dim": 2.25, "key": {"seed": 0, "weights": "EMA 0.9"}}))
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "one")
    other = make_run(folder / "other", "optim.lr=0.5")
    history.write(other, {"began": {"source": "runs/x", "weights": "EMA 0.9", "step": 3, "checkpoint": "beef"}})
    (other / "runs.jsonl").write_text('{"step": 0, "commit": "0123456789abcdef", "host": "h1", "command": "main.py"}\n')
    make_run(folder / "half", step=20)
    return folder


def compare(*workdirs, flags=()):
    return main([*(f"--workdir={workdir}" for workdir in workdirs), "--mode=compare", *flags])


def test_the_page_of_two_runs(runs, capsys):
    assert compare(runs / "one", runs / "other") == 0
    assert capsys.readouterr().out.endswith(f"comparison: {runs / 'one' / 'compare.html'}\n")
    page = Page((runs / "one" / "compare.html").read_text())
    texts = page.texts()
    assert ("h1", "one · other") in page.text
    row = texts.index("bits_per_dim")
    assert texts[row + 1 : row + 3] == ["2.25", "2.25"]
    assert texts[texts.index("optim.lr") :][:3] == ["optim.lr", "0.002", "0.5"]
    assert texts[texts.index("began with") + 1] == "EMA 0.9 of runs/x at step 3, checkpoint beef"
    assert texts[texts.index("start at step 0") + 1] == "commit 0123456789ab, on h1, main.py"
    assert texts.count("1,500 images digits/train (abc)") == 2 and texts.count("step 40, EMA 0.9") == 2
    assert not list((runs / "other").glob("*.html"))


@pytest.mark.parametrize(
    "workdirs, flags, said",
    [
        (["one"], [], "needs two runs or more"),
        (["one", "one"], [], "needs two runs or more, each once"),
        (["one", "none"], [], "none holds no config.json"),
        (["one", "half"], [], "half is not finished, at step 20 of 40"),
        (["one", "other"], ["--config.seed=1"], "takes runs as they are, got --config.seed=1"),
        (["one", "other"], ["--config=configs/digits.py"], "got --config"),
    ],
)
def test_what_cannot_be_compared_is_one_line(runs, capsys, workdirs, flags, said):
    (runs / "one" / "compare.html").unlink(missing_ok=True)
    assert compare(*(runs / name for name in workdirs), flags=flags) == EXIT_USER_ERROR
    err = capsys.readouterr().err.strip()
    assert said in err and "\n" not in err and not (runs / "one" / "compare.html").exists()


def test_an_evaluation_that_was_broken_off_is_refused(runs, tmp_path, capsys):
    """A job with a state and without a result."""
    workdir = shutil.copytree(runs / "one", tmp_path / "broken")
    shutil.copytree(workdir / "checkpoints", workdir / "eval" / "40" / "samples" / "meta")
    assert compare(runs / "other", workdir) == EXIT_USER_ERROR
    assert "is not finished: samples; run its evaluation" in capsys.readouterr().err


def test_other_modes_take_one_workdir(runs, capsys):
    assert main([f"--workdir={runs / 'one'}", f"--workdir={runs / 'other'}", "--mode=eval"]) == EXIT_USER_ERROR
    assert "--workdir is given 2 times: only --mode=compare takes several" in capsys.readouterr().err


def test_runs_are_called_by_what_tells_them_apart():
    assert names([place_of("/a/x/run"), place_of("/a/y/run")]) == ["x/run", "y/run"]
    assert names([place_of("/a/x"), place_of("/b/y")]) == ["x", "y"]
    assert names([place_of("/a/x"), place_of("/b/c/x"), place_of("/b/y/x")]) == ["a/x", "c/x", "y/x"]
