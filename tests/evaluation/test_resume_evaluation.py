"""An evaluation killed at any moment, on other devices or in other batches, gives the same figures."""

import json

import numpy as np
import pytest

from main import main
from score_flow.config import registries
from tests.launch import TINY, launch, run, run_together

# Fixed steps: where they are adapted, rounding, which is another on other devices, may decide on one.
FLAGS = (
    "--config.eval.batch_size=64",
    "--config.eval.num_samples=100",
    "--config.eval.num_repeats=2",
    "--config.eval.solver.method=heun",
    "--config.eval.solver.n_steps=20",
    "--config.sampling.method=heun",
    "--config.sampling.n_steps=20",
)

# Every job by itself, short
EVERY = (
    "--config.eval.enable_loss=False",
    "--config.eval.enable_sampling=False",
    "--config.eval.enable_bpd=False",
    "--config.eval.batch_size=64",
    "--config.eval.num_samples=200",
    "--config.eval.largest_time=0.99",  # below the end of the linear path, for the chain of vlb
    "--config.eval.solver.rtol=1e-3",
    "--config.eval.solver.atol=1e-3",
    "--config.eval.vlb_steps=10",
    "--config.eval.bound_times=5",
    "--config.sampling.rtol=1e-3",
    "--config.sampling.atol=1e-3",
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """A trained run, evaluated once without a break in the folder `eval`."""
    workdir = tmp_path_factory.mktemp("trained")
    assert main([*TINY, f"--workdir={workdir}", "--mode=train"]) == 0
    output = run(workdir, *FLAGS, mode="eval", cache=cache)
    assert output.splitlines()[0].startswith("run directory:") and output.strip().splitlines()[-1].startswith("report:")
    return workdir


def arrays(workdir, folder):
    """Every figure and every array of an evaluation."""
    directory = workdir / folder / "40"
    found = {}
    for file in sorted(directory.rglob("*.npz")):
        with np.load(file, allow_pickle=False) as opened:
            found |= {f"{file.relative_to(directory)}:{name}": opened[name] for name in opened.files}
    return json.loads((directory / "results.json").read_text()), found


def test_a_killed_loss_is_gone_on_with_in_other_batches_on_other_devices(tmp_path, cache, capsys):
    """SIGKILL to a process of one device; eight go on in other batches: figures of a run without a break, to 1e-5."""
    assert main([*TINY, f"--workdir={tmp_path}", "--mode=train"]) == 0
    alone = ("--config.eval.enable_sampling=False", "--config.eval.enable_bpd=False", "--config.eval.batch_size=64")
    run(tmp_path, *alone, mode="eval", moment="after:loss.3:SIGKILL", cache=cache, expected=-9)
    assert not (tmp_path / "eval/40/results.json").exists() and list((tmp_path / "eval/40/loss").iterdir())
    command = [*TINY, f"--workdir={tmp_path}", "--mode=eval", *alone]
    assert main([*command, "--config.eval.batch_size=104"]) == main([*command, "--eval_folder=whole"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert not [line for line in said if "of another" in line] and said[-1].startswith("report:")
    other, one = (arrays(tmp_path, folder)[0]["loss"] for folder in ("eval", "whole"))
    assert other["n_images"] == one["n_images"] == 297
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-5)


@pytest.mark.slow
def test_killed_and_gone_on_in_other_batches_on_other_devices(trained, cache):
    """SIGKILL in the loss, which is then gone on with in batches of 100 on two devices: every figure to 1e-5."""
    flags = [*FLAGS, "--eval_folder=mixed"]
    run(trained, *flags, mode="eval", moment="after:loss.3:SIGKILL", cache=cache, expected=-9)
    output = run(trained, *flags, "--config.eval.batch_size=100", mode="eval", cache=cache, devices=2)
    assert "of another" not in output
    (one, arrays_one), (other, arrays_other) = arrays(trained, "eval"), arrays(trained, "mixed")
    assert arrays_one.keys() == arrays_other.keys() and one.keys() == other.keys()
    for job, name in (("loss", "loss"), ("likelihood", "bits_per_dim"), ("samples", "n_samples")):
        np.testing.assert_allclose(other[job][name], one[job][name], rtol=1e-5, err_msg=job)
    assert other["loss"]["n_images"] == other["likelihood"]["n_images"] == 297
    bits = "likelihood/bits.npz:bits"
    np.testing.assert_allclose(arrays_other[bits], arrays_one[bits], rtol=0, atol=1e-5)
    a, b = (found["samples/samples.npz:image"].astype(int) for found in (arrays_one, arrays_other))
    # Rounding of some 1e-6 moves a number over the edge of its level, 1/8 wide, once in some 1e4 numbers at most.
    assert a.shape == b.shape and np.abs(a - b).max() <= 1 and (a != b).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        ["round:3:SIGKILL"],
        ["round:2:SIGKILL", "round:6:SIGTERM", "round:3:SIGKILL", "round:5:SIGTERM", "round:1:SIGKILL"],
    ],
    ids=len,
)
def test_killed_and_gone_on(trained, cache, moments):
    """SIGKILL and SIGTERM in the loss and the likelihood job (the batches asked for are counted): bitwise the same."""
    folder = f"broken{len(moments)}"
    for moment in moments:
        kill = moment.endswith("SIGKILL")
        run(
            trained,
            *FLAGS,
            f"--eval_folder={folder}",
            mode="eval",
            moment=moment,
            cache=cache,
            expected=-9 if kill else 75,
        )
    run(trained, *FLAGS, f"--eval_folder={folder}", mode="eval", cache=cache)
    (one, arrays_one), (other, arrays_other) = arrays(trained, "eval"), arrays(trained, folder)
    assert one == other
    assert arrays_one.keys() == arrays_other.keys()
    for name in arrays_one:
        np.testing.assert_array_equal(arrays_one[name], arrays_other[name], err_msg=name)


@pytest.fixture(scope="module")
def jobs(trained, cache):
    """{job: rounds} of every job of evaluation/ that this model has, each done without a break in `whole`."""
    run(trained, *FLAGS, mode="stats", cache=cache)
    done = {}
    for job in sorted({*registries.JOBS.names()} - {"gallery"}):  # minutes of pictures, by samplers of other jobs
        process = launch(
            trained, *EVERY, f"--config.eval.jobs=('{job}',)", "--eval_folder=whole", mode="eval", cache=cache
        )
        output, _ = process.communicate(timeout=900)
        assert process.returncode in (0, 2), output[-3000:]
        if process.returncode == 0:
            saved = sorted((trained / "whole" / "40" / job / "meta").glob("*/meta/metadata"))
            done[job] = json.loads(saved[-1].read_text())["n_rounds"] if saved else 1
    return done


@pytest.mark.slow
def test_every_job_killed_and_gone_on(trained, cache, jobs):
    """One evaluation of every job, killed in each, before or after a round, and stopped in those with more rounds.

    At least ten SIGKILLs and five SIGTERMs in all; results and arrays are bitwise those of one without a break.
    """
    assert {"loss", "samples", "likelihood", "vlb", "latents", "bound", "fid", "calls"} <= jobs.keys()
    moments = []
    for place, (job, n) in enumerate(jobs.items()):
        when = ("before", "after")[place % 2]
        moments.append(f"{when}:{job}.{min(1, n - 1)}:SIGKILL")
        if n > 3:
            moments.append(f"{when}:{job}.{n - 2}:SIGTERM")
    signals = [moment.rpartition(":")[2] for moment in moments]
    assert signals.count("SIGKILL") >= 10 and signals.count("SIGTERM") >= 5, moments
    flags = [*EVERY, f"--config.eval.jobs={tuple(jobs)!r}", "--eval_folder=killed"]
    for moment in moments:
        run(trained, *flags, mode="eval", moment=moment, cache=cache, expected=-9 if moment.endswith("KILL") else 75)
    run(trained, *flags, mode="eval", cache=cache)
    for job in jobs:
        whole, killed = (trained / folder / "40" / job for folder in ("whole", "killed"))
        assert (whole / "result.json").read_text() == (killed / "result.json").read_text(), job
        files = sorted(file.relative_to(whole) for file in whole.rglob("*.npz"))
        assert files == sorted(file.relative_to(killed) for file in killed.rglob("*.npz"))
        for file in files:
            with np.load(whole / file, allow_pickle=False) as one, np.load(killed / file, allow_pickle=False) as other:
                assert set(one.files) == set(other.files)  # a restored state has its names in another order
                for name in one.files:
                    np.testing.assert_array_equal(one[name], other[name], err_msg=f"{job}/{file}:{name}")


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2], ids=["one_process", "two_processes"])
def test_other_batches_and_devices(trained, cache, n):
    """Batches of 100 on 8 devices of n processes, watching, against 64 on one: 1e-5 bits/dim, the same 100 images."""
    flags = [flag for flag in FLAGS if "batch_size" not in flag]
    flags += ["--config.eval.batch_size=100", f"--eval_folder=eight{n}", "--watch"]
    run_together(n, trained, *flags, mode="eval", cache=cache, devices=8 // n)
    (one, arrays_one), (other, arrays_other) = arrays(trained, "eval"), arrays(trained, f"eight{n}")
    assert abs(one["likelihood"]["bits_per_dim"] - other["likelihood"]["bits_per_dim"]) < 1e-5
    assert abs(one["loss"]["loss"] - other["loss"]["loss"]) < 1e-5 * one["loss"]["loss"]
    a, b = (x["samples/samples.npz:image"].astype(int) for x in (arrays_one, arrays_other))
    # Equal but where a pixel lies within float32 rounding of the border between two levels.
    assert np.abs(a - b).max() <= 1 and (a != b).mean() < 1e-3


@pytest.mark.slow
def test_done_jobs_are_not_done_again(trained, cache):
    """A second evaluation reads the results; other settings need another folder; sample mode spares the report."""
    output = run(trained, *FLAGS, mode="eval", cache=cache)
    assert "round/s" not in output
    assert "another --eval_folder" in run(
        trained, *FLAGS, "--config.eval.solver.method=dopri5", mode="eval", cache=cache, expected=2
    )
    page = (trained / "report.html").read_bytes()
    flags = [flag for flag in FLAGS if ".sampling." not in flag]
    run(trained, *flags, "--config.sampling.name=ddim", "--config.sampling.n_steps=3", mode="sample", cache=cache)
    with np.load(trained / "samples" / "40" / "samples" / "samples.npz", allow_pickle=False) as samples:
        assert samples["image"].shape == (100, 8, 8, 1)
    assert (trained / "report.html").read_bytes() == page
