"""An evaluation killed at any moment, on other devices or in other batches, gives the same figures."""

import json

import numpy as np
import pytest

from tests.launch import finish, launch, run

FLAGS = (
    "--config.eval.batch_size=64",
    "--config.eval.num_samples=100",
    "--config.eval.num_repeats=2",
    "--config.eval.solver.rtol=1e-5",
    "--config.eval.solver.atol=1e-5",
    "--config.sampling.rtol=1e-4",
    "--config.sampling.atol=1e-4",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """A trained run, evaluated once without a break in the folder `eval`."""
    workdir = tmp_path_factory.mktemp("trained")
    run(workdir, cache=cache)
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


@pytest.mark.parametrize(
    "moments",
    [
        ["round:3:SIGKILL"],
        pytest.param(
            ["round:2:SIGKILL", "round:6:SIGTERM", "round:3:SIGKILL", "round:5:SIGTERM", "round:1:SIGKILL"],
            marks=pytest.mark.slow,
        ),
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


@pytest.mark.slow
def test_other_batches_and_devices(trained, cache):
    """Batches of 100 on 8 devices against 64 on one: 1e-5 bits/dim, and the same 100 images."""
    flags = [flag for flag in FLAGS if "batch_size" not in flag] + [
        "--config.eval.batch_size=100",
        "--eval_folder=eight",
    ]
    finish(launch(trained, *flags, mode="eval", cache=cache, devices=8))
    (one, arrays_one), (other, arrays_other) = arrays(trained, "eval"), arrays(trained, "eight")
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
