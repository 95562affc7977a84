"""Dequantisers from the command line: missing ones, trained and interrupted ones, and three figures side by side."""

import json

import numpy as np
import pytest

from evaluation import dequantisers
from main import EXIT_USER_ERROR, main
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.runs.checkpoint import Checkpoints
from tests.launch import TINY, losses, run, run_together, weights

FLOW = [f"--config.dequantizer.{field}" for field in ("width=4", "components=2", "couplings=2", "context_width=4")]
FLAGS = [*FLOW, "--config.deq.n_iters=20", "--config.training.snapshot_freq_for_preemption=5"]
EVAL = [
    "--config.eval.enable_loss=False",
    "--config.eval.enable_sampling=False",
    "--config.eval.batch_size=304",
    "--config.eval.solver.rtol=1e-3",
    "--config.eval.solver.atol=1e-3",
    "--config.eval.jobs=('likelihood_variational','likelihood_decoder')",
]


def attempt(capsys, workdir, mode, *flags):
    """The one line of a mistake."""
    assert main([*TINY, f"--workdir={workdir}", f"--mode={mode}", *flags]) == EXIT_USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    "flag", ["--config.eval.dequantizer=variational", "--config.eval.jobs=('likelihood_variational',)"]
)
def test_a_missing_dequantiser_is_refused_with_the_command_that_trains_it(capsys, tmp_path, flag):
    line = attempt(capsys, tmp_path, "eval", flag)
    assert f"no variational dequantiser in {tmp_path}/dequantizer" in line
    assert f"python main.py --workdir={tmp_path} --mode=train_deq" in line


def test_mistakes_are_one_line(capsys, tmp_path):
    assert "train first" in attempt(capsys, tmp_path, "train_deq")
    assert "Did you mean 'variational'?" in attempt(capsys, tmp_path, "eval", "--config.eval.dequantizer=variation")
    for time in ("smallest_time=0", "decoder_time=1"):
        flags = (f"--config.eval.{time}", "--config.eval.dequantizer=decoder")
        assert "give a config.eval.decoder_time" in attempt(capsys, tmp_path, "eval", *flags)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """A model, and its dequantiser trained without a break."""
    workdir = tmp_path_factory.mktemp("whole")
    run(workdir, cache=cache)
    output = run(workdir, *FLAGS, mode="train_deq", cache=cache)
    assert "FlowppDequantiser with" in output
    return workdir


@pytest.mark.slow
def test_interrupted_training_is_bitwise_the_same(whole, tmp_path, cache):
    """The model is trained anew, as bitwise as ever; its dequantiser by SIGTERM and SIGKILL."""
    run(tmp_path, cache=cache)
    model = (tmp_path / "config.json").read_bytes()
    for moment, code in (("step:8:SIGTERM", 75), ("step:13:SIGKILL", -9)):
        run(tmp_path, *FLAGS, mode="train_deq", moment=moment, cache=cache, expected=code)
    run(tmp_path, *FLAGS, mode="train_deq", cache=cache)
    ours, theirs = tmp_path / "dequantizer", whole / "dequantizer"
    assert losses(ours) == losses(theirs) and len(losses(ours)) == 20
    for one, other in zip(weights(ours, 20), weights(theirs, 20), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (tmp_path / "config.json").read_bytes() == model  # the dequantiser's settings are its own


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2], ids=["one_process", "two_processes"])
def test_eight_devices_train_the_same(whole, tmp_path, cache, n):
    run(tmp_path, cache=cache)
    run_together(n, tmp_path, *FLAGS, mode="train_deq", cache=cache, devices=8 // n)
    found, expected = losses(tmp_path / "dequantizer"), losses(whole / "dequantizer")
    assert max(abs(found[step][0] / expected[step][0] - 1) for step in expected) <= 1e-5


@pytest.mark.slow
def test_a_dequantiser_of_other_settings_or_for_another_model_is_refused(whole, cache):
    other = ("--config.dequantizer.width=8", *FLAGS[1:])
    assert "dequantizer.width: 4 -> 8" in run(whole, *other, mode="train_deq", cache=cache, expected=2)
    other = (*FLAGS, "--config.deq.score_step=30")
    assert "config.deq.score_step = 30 is none of [40]" in run(whole, *other, mode="train_deq", cache=cache, expected=2)


@pytest.mark.slow
def test_three_figures_side_by_side(whole, cache):
    """Of the same images and probes; the decoder's at 1e-5 is uniform's but for the noise that x is drawn with."""
    run(whole, *EVAL, mode="eval", cache=cache)
    directory = whole / "eval" / "40"
    names = {"likelihood": "uniform", "likelihood_variational": "variational", "likelihood_decoder": "decoder"}
    results = json.loads((directory / "results.json").read_text())
    bits = {}
    for job, name in names.items():
        assert results[job]["dequantisation"] == name and results[job]["n_images"] == 297
        assert results[job].get("dequantizer_step") == (20 if name == "variational" else None)
        with np.load(directory / job / "bits.npz", allow_pickle=False) as arrays:
            bits[name] = arrays["bits"][0]
        np.testing.assert_allclose(bits[name].mean(), results[job]["bits_per_dim"], rtol=1e-12)
    difference = bits["decoder"] - bits["uniform"]
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / np.sqrt(len(difference))
    assert (bits["variational"] != bits["uniform"]).all()
    # Another time of the decoder has its own figure; the flow starts there.
    jobs = "--config.eval.jobs=('likelihood_decoder','likelihood_truncated_normal')"
    later = [*EVAL, "--config.eval.enable_bpd=False", jobs]
    run(whole, *later, "--config.eval.decoder_time=0.05", "--eval_folder=later", mode="eval", cache=cache)
    all_later = json.loads((whole / "later" / "40" / "results.json").read_text())
    later, cut = all_later["likelihood_decoder"], all_later["likelihood_truncated_normal"]
    assert cut["smallest_time"] == 0.05 and cut["dequantisation"] == "truncated_normal" and cut["bits_per_dim"] > 0
    assert later["smallest_time"] == 0.05 and later["bits_per_dim"] != results["likelihood_decoder"]["bits_per_dim"]
    # The same figure by eval.dequantizer, in a folder of its own: results of other settings are not mixed.
    chosen = [*EVAL[:-1], "--config.eval.dequantizer=variational"]
    assert "another --eval_folder" in run(whole, *chosen, mode="eval", cache=cache, expected=2)
    run(whole, *chosen, "--eval_folder=variational", mode="eval", cache=cache)
    again = json.loads((whole / "variational" / "40" / "results.json").read_text())["likelihood"]
    assert again == results["likelihood_variational"]


@pytest.mark.slow
def test_a_broken_evaluation_goes_on_with_the_dequantiser_that_it_began_with(whole, cache):
    """Its state says which it was: another one is not taken in its place."""
    job = Checkpoints(whole / "pinned" / "40" / "likelihood_variational" / "meta")
    job.save(1, {"state": {"done": np.zeros(1)}}, {"key": {"dequantizer_step": 7}}, wait=True)
    job.close()
    flags = [*EVAL, "--config.eval.enable_bpd=False", "--config.eval.jobs=('likelihood_variational',)"]
    message = run(whole, *flags, "--eval_folder=pinned", mode="eval", cache=cache, expected=2)
    assert "the dequantiser that this evaluation began with is none of [20]" in message


@pytest.mark.slow
def test_cells_around_exact_levels(tmp_path, cache):
    """They are those of the training, whatever an evaluation says; those of an older one fill the range."""
    levels = "--config.data.uniform_dequantization=False"
    run(tmp_path, levels, cache=cache)
    run(tmp_path, *FLAGS, levels, "--config.deq.centred=True", mode="train_deq", cache=cache)
    assert "deq.centred: True -> False" in run(tmp_path, *FLAGS, levels, mode="train_deq", cache=cache, expected=2)
    run(tmp_path, levels, *EVAL[:-1], EVAL[-1].replace("'likelihood_decoder'", ""), mode="eval", cache=cache)
    results = json.loads((tmp_path / "eval" / "40" / "results.json").read_text())
    assert results["likelihood_variational"]["cells"] == "around levels" and "cells" not in results["likelihood"]
    config = load("configs/digits.py", [*TINY[1:], *FLOW, levels])
    found = Checkpoints(tmp_path / "dequantizer" / "checkpoints")
    for told, centred in ((None, False), (False, False), (True, True)):
        old = found.meta(20)["config"] | {"deq": {} if told is None else {"centred": told}}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(found, "meta", lambda step, old=old: {"config": old})
            assert dequantisers.load(experiment(config), found, 20).scaling.centred is centred
    found.close()
