"""config.model.consistency: a network that knows one jump from each (x, t), to t = 0, from training to samples."""

import json

import pytest

from main import EXIT_USER_ERROR, main
from tests.launch import TINY

MAP = {
    "config.model.consistency": True, "config.model.prediction": "consistency", "config.training.flow_map_equal": 0.0,
    "config.training.objective": "flow_map", "config.training.flow_map": "consistency",
    "config.training.weighting": "velocity", "config.training.smallest_time": 0.0,
}  # fmt: skip
ONE_CALL = {"config.sampling.name": "consistency"}


def command(workdir, mode, *settings):
    flags = [f"--{name}={value}" for given in (MAP, ONE_CALL, *settings) for name, value in given.items()]
    return main([*TINY, "--config.network.width=8", f"--workdir={workdir}", f"--mode={mode}", *flags])


@pytest.mark.parametrize("change, said", [
    ({"config.training.flow_map": "meanflow"}, "config.training.flow_map is 'meanflow'"),
    ({"config.training.flow_map_equal": 0.5}, "config.training.flow_map_equal is 0.5"),
    ({"config.training.smallest_time": 1e-5}, "config.training.smallest_time is 1e-05"),
    ({"config.model.span": True}, "set span=False"),
    ({"config.training.objective": "simple", "config.training.flow_map": "meanflow",
      "config.training.flow_map_equal": 0.5}, "config.model.consistency is True, but training.objective = simple"),
])  # fmt: skip
def test_what_would_ask_it_for_other_jumps_is_refused(change, said, tmp_path, capsys):
    assert command(tmp_path / "run", "train", change) == EXIT_USER_ERROR
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_training_samples_and_what_is_refused(tmp_path, capsys):
    run, few = tmp_path / "run", {"config.eval.num_samples": 64}
    assert command(run, "train", {"config.training.n_iters": 4}) == 0
    assert command(run, "eval", few, {"config.eval.only": "('loss','samples','gallery')"}) == 0
    assert json.loads(next(run.glob("eval/*/loss/result.json")).read_text())
    assert command(run, "sample", few, {"config.sampling.n_steps": 2, "eval_folder": "two"}) == 0
    for mode, change, said in (
        ("eval", {"config.eval.only": "('likelihood',)"}, "the job likelihood needs a velocity"),
        ("eval", {"config.eval.only": "('likelihood_flow_map',)"}, "the job likelihood_flow_map needs a velocity"),
        ("sample", {"config.sampling.name": "heun"}, "knows the jump to t = 0 alone"),
        ("sample", {"config.sampling.name": "flow_map"}, "set config.sampling.name = consistency"),
        ("sample", {"config.sampling.t_min": 1e-3}, "config.sampling.t_min is 0.001"),
    ):
        capsys.readouterr()
        assert command(run, mode, few, change, {"eval_folder": "refused"}) == EXIT_USER_ERROR
        assert said in capsys.readouterr().err and not (run / "refused").exists()
