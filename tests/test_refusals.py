"""A refused command changes nothing: around every refusal the workdir is the same, byte for byte."""

import shutil

import pytest

from main import EXIT_USER_ERROR, main
from tests.launch import TINY, losses

SHORT = ("--config.training.n_iters=4", "--config.training.snapshot_freq=2", "--config.training.eval_freq=2")
DRAW = ("--config.eval.num_samples=8", "--config.eval.batch_size=8")


def contents(folder) -> dict:
    """path -> bytes (None for a folder) of everything below; {} where there is no folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def command(capsys, workdir, *flags, mode="train") -> tuple[int, str]:
    """(exit code, what was said in errors) of main.py in this process."""
    capsys.readouterr()
    code = main([*TINY, *SHORT, f"--workdir={workdir}", f"--mode={mode}", *flags])
    return code, capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a run of four steps."""
    workdir = tmp_path_factory.mktemp("refusals") / "run"
    assert main([*TINY, *SHORT, f"--workdir={workdir}", "--mode=train"]) == 0
    return workdir


REFUSED = [
    # mode, flags, said
    ("train", ["--config.network.width=9"], "network.width"),
    ("train", ["--config.path.name=gvp"], "path.name"),
    ("train", ["--config.model.ema_rate=(0.5,)"], "model.ema_rate"),
    ("train", ["--config.training.batch_size=17"], "17"),
    ("train", ["--config.training.batch_size=24"], "training.batch_size"),
    ("train", ["--config.optim.lrr=1"], "'lr'"),
    ("train", ["--config.sampling.t_max=2.0"], "t_max"),
    ("train", ["--config.sampling.name=heun", "--config.sampling.n_steps=0"], "n_steps"),
    ("train", ["--config.network.wdith=9"], "'width'"),
    ("train", ["--config.control.nmae=9"], "name"),
    ("train", ["--config.eval.extractor.name=big"], "eval.extractor.name"),
    ("train", ["--config.dequantizer.foo=1"], "foo"),
    ("train", ["--config.guidance.bad=/nonexistent", "--config.guidance.scale=2"], "/nonexistent"),
    ("train", ["--config.data.source.name=folder", "--config.data.source.path=/nonexistent"], "/nonexistent"),
    ("train", ["--watch"], "--watch"),
    ("eval", ["--config.eval.jobs=('nojob',)"], "nojob"),
    ("eval", ["--config.eval.solver.method=foo"], "solver.method"),
    ("eval", ["--config.eval.ema=9"], "eval.ema"),
    ("eval", ["--config.eval.begin_ckpt=7"], "begin_ckpt"),
    ("eval", ["--config.eval.jobs=('vlb',)"], "vlb_steps"),
    ("eval", ["--config.eval.jobs=('accuracy',)"], "accuracy"),
    ("eval", ["--config.eval.dequantizer=variational"], "train_deq"),
    ("eval", ["--config.eval.jobs=('fid',)"], "statistics"),
    ("eval", ["--config.network.width=9"], "network.width"),
    ("eval", ["--config.eval.solver.grid=(0.1,1.0)"], "grid"),
    ("sample", ["--config.sampling.t_min=0.9", "--config.sampling.t_max=0.5"], "t_m"),
    ("sample", ["--config.sampling.t_min=-0.5"], "t_min"),
    ("sample", ["--config.guidance.scale=2.0"], "guidance.scale"),
    ("sample", ["--config.eval.low_res=/nonexistent"], "low_res"),
    ("control", [], "input"),
    ("control", ["--config.control.input=/nonexistent", "--config.control.mask=/nonexistent"], "/nonexistent"),
    ("stats", ["--config.eval.extractor.name=inception"], "weights"),
    ("encode", [], "autoencoder"),
    ("reproduce", [], "preset"),
    ("train_deq", ["--config.deq.score_step=3"], "score_step"),
    ("train_deq", ["--config.deq.centred=True"], "deq.centred"),
    ("import", [], "--checkpoint"),
]


# What only differs from a run's own settings is no mistake where there is no run.
OF_ANOTHER_RUN = [flags for _, flags, _ in REFUSED[:3]] + [["--config.training.batch_size=24"]]


@pytest.mark.parametrize("mode, flags, said", REFUSED, ids=[f"{m} {' '.join(f)}" for m, f, _ in REFUSED])
def test_a_refused_command_changes_nothing(capsys, tmp_path, trained, mode, flags, said):
    """Neither a run, nor a place where there is none."""
    before = contents(trained)
    code, err = command(capsys, trained, *DRAW, *flags, mode=mode)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == EXIT_USER_ERROR and len(lines) == 1 and said in lines[0], err
    assert contents(trained) == before
    if flags not in OF_ANOTHER_RUN:
        assert command(capsys, tmp_path / "new" / "run", *DRAW, *flags, mode=mode)[0] == EXIT_USER_ERROR
        assert not (tmp_path / "new").exists()


def test_the_run_goes_on_without_its_config(capsys, trained, tmp_path):
    """After a refusal of another width, commands without --config still know the run's own (B01)."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    assert command(capsys, workdir, "--config.network.width=9")[0] == EXIT_USER_ERROR
    assert main([f"--workdir={workdir}", "--mode=sample", *DRAW, "--config.sampling.n_steps=2"]) == 0


@pytest.mark.parametrize("workdir", ["", " ", "gs://", "s3:///run", "gs://b/r*", "http://h/run", "run[x]", "a\\b"])
def test_a_workdir_that_is_none_is_refused(capsys, workdir):
    code = main([*TINY, *SHORT, f"--workdir={workdir}", "--mode=train"])
    err = capsys.readouterr().err
    assert code == EXIT_USER_ERROR and "--workdir" in err and len(err.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_workdir_with_a_tilde_and_other_signs(tmp_path, monkeypatch):
    """~ is the home folder; a name may hold blanks and stars. The run is found again: nothing is left to do."""
    monkeypatch.setenv("HOME", str(tmp_path))
    flags = [*TINY, *SHORT, "--workdir=~/a run* #{1}?", "--mode=train", "--config.training.n_iters=2"]
    assert main(flags) == main(flags) == 0
    assert (tmp_path / "a run* #{1}?" / "checkpoints" / "2").is_dir()
    assert list(losses(tmp_path / "a run* #{1}?")) == [1, 2]
