"""Interruptions and other machines change nothing: real processes, real signals, real checkpoints."""

import json
import os
import re
import time

import numpy as np
import pytest

from main import main
from score_flow.runs.places import local, place_of
from tests import emulators
from tests.launch import TINY, finish, launch, losses, places, run, run_together, start_together, weights

# A resumable state, a later one with one to replace, the milestone at the end.
KILLS = [f"{kind}:{step}:SIGKILL" for step in (10, 30, 40) for kind in ("saving", "hashing", "replacing")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """40 steps without a break."""
    workdir = tmp_path_factory.mktemp("whole")
    assert str(workdir) in run(workdir, cache=cache).splitlines()[0]  # the run directory comes first
    return workdir


def assert_same(one, other) -> None:
    """Two runs of 40 steps have the same losses and the same weights, bitwise."""
    assert losses(one) == losses(other)
    for ours, theirs in zip(weights(one, 40), weights(other, 40), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def largest_difference(one, other) -> float:
    """The largest relative difference between the losses of two runs of the same steps."""
    found, expected = losses(one), losses(other)
    assert list(found) == list(expected)
    worst = max(abs(found[step][0] / expected[step][0] - 1) for step in expected)
    print(f"largest relative difference of a loss: {worst:.1e}")
    return worst


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        ["step:20:SIGKILL"],
        ["step:17:SIGTERM", "step:31:SIGKILL"],
        ["step:3:SIGTERM", "step:31:SIGKILL", "step:38:SIGINT"],
    ],
    ids=str,
)
def test_interrupted_training_is_bitwise_the_same(whole, tmp_path, cache, moments):
    for moment in moments:
        kill = moment.endswith("SIGKILL")
        output = run(tmp_path, moment=moment, cache=cache, expected=-9 if kill else 75)
        assert kill or "run the same command to go on" in output
    run(tmp_path, cache=cache)
    assert_same(tmp_path, whole)


@pytest.mark.skipif(bool(emulators.missing("gs")), reason="gcsfs is not installed")
def test_interrupted_on_a_store_it_is_bitwise_the_same(whole, cache):
    """Of a store of Google's; more of it, and S3, is in test_on_stores.py."""
    workdir = "gs://bucket/run"
    with emulators.here("gs") as variables:
        output = run(workdir, moment="step:17:SIGTERM", cache=cache, expected=75, **variables)
        assert output.startswith(f"run directory: {workdir}\n")
        run(workdir, cache=cache, **variables)
        copy = local(place_of(workdir))
    assert_same(copy, whole)


@pytest.mark.slow
def test_steps_per_program_do_not_matter(whole, tmp_path, cache):
    """n_jitted_steps = 5 gives the losses and weights of 1 to 1e-6: the same operations, fused otherwise."""
    run(tmp_path, "--config.training.n_jitted_steps=5", cache=cache)
    assert largest_difference(tmp_path, whole) <= 1e-6
    for one, other in zip(weights(tmp_path, 40), weights(whole, 40), strict=True):
        # Adam divides by sqrt(v): an entry whose gradient is rounding noise may move by that share of lr.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_one_checkpoint_goes_round_all_machines(whole, tmp_path, cache):
    """1 device -> 8 -> fsdp of 8 -> fsdp of 2 x 4 -> 2 processes of 4, and with fsdp of 2 x 4 -> 1; same losses."""

    def to(n, *flags, **options):
        return launch(tmp_path, f"--config.training.n_iters={n}", *flags, cache=cache, **options)

    finish(to(8))
    finish(to(16, devices=8))
    drawn = "--config.training.snapshot_sampling=True"
    finish(to(20, "--config.training.fsdp=True", drawn, devices=8))
    finish(to(24, "--config.training.fsdp=4", devices=8))
    run_together(2, tmp_path, "--config.training.n_iters=28", devices=4, cache=cache)
    run_together(2, tmp_path, "--config.training.n_iters=34", "--config.training.fsdp=4", drawn, devices=4, cache=cache)
    finish(to(40))
    assert largest_difference(tmp_path, whole) <= 1e-6
    assert {sheet.name for sheet in (tmp_path / "samples").iterdir()} == {"00000020.png", "00000034.png"}


def test_damaged_checkpoint_is_found_and_the_one_before_used(whole, tmp_path, cache):
    """Stopped, and one bit of the newest checkpoint flipped: said, refused, and gone on from the one before."""
    output = run(tmp_path, moment="step:29:SIGTERM", cache=cache, expected=75)
    assert "run the same command to go on" in output
    newest = tmp_path / "checkpoints-meta" / "30"
    victim = max((p for p in newest.rglob("*") if p.is_file()), key=os.path.getsize)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    victim.write_bytes(content)
    output = run(tmp_path, cache=cache)
    assert "is damaged" in output and "from step 20 " in output
    assert_same(tmp_path, whole)


def test_a_checkpoint_of_another_config_is_refused(whole, capsys):
    flags = ("--config.network.width=64", "--config.path.name=vp")
    assert main([*TINY, f"--workdir={whole}", "--mode=train", *flags]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error:") and "network.width: 32 -> 64" in line and "linear -> vp" in line
    assert json.loads((whole / "config.json").read_text())["network"]["width"] == 32  # later commands go by it


@pytest.mark.slow
def test_two_runs_on_one_workdir(whole, tmp_path, cache):
    """The second is refused while the first lives; a killed holder leaves no stale lock."""
    import fcntl

    run(tmp_path, "--config.training.n_iters=1", cache=cache)
    with open(tmp_path / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use by another run" in run(tmp_path, cache=cache, expected=2)
    run(tmp_path, "--config.training.n_iters=2", cache=cache)


def saved(workdir) -> list[int]:
    """The steps of the resumable states."""
    return sorted(int(path.name.split(".")[0]) for path in (workdir / "checkpoints-meta").glob("*.manifest.json"))


@pytest.mark.slow
def test_non_finite_loss_stops_names_the_step_and_spares_the_checkpoints(tmp_path, capsys):
    """A learning rate of 1e6 overflows: exit code 3, the step named, nothing saved after the last finite step."""
    flags = (
        "--config.optim.lr=1e6",
        "--config.optim.grad_clip=0.",
        "--config.network.depth=3",
        "--config.training.snapshot_freq_for_preemption=1",
    )
    assert main([*TINY, f"--workdir={tmp_path}", "--mode=train", *flags]) == 3
    line = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error: ")][-1]
    bad = int(re.search(r"step (\d+)", line)[1])
    assert saved(tmp_path)[-1] < bad
    assert max(losses(tmp_path)) < bad


@pytest.mark.parametrize(
    "moment", [pytest.param(m, marks=pytest.mark.slow) for m in ("saving:20:SIGKILL", *KILLS)], ids=str
)
def test_a_kill_inside_a_save_costs_the_steps_since_the_one_before(whole, tmp_path, cache, moment):
    """While orbax writes, while files are hashed, between the manifest and what it replaces."""
    step = int(moment.split(":")[1])
    run(tmp_path, moment=moment, cache=cache, expected=-9)
    assert step not in saved(tmp_path) or moment.startswith("replacing")
    output = run(tmp_path, cache=cache)
    assert "is damaged" not in output
    assert_same(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_others_in_one_line(tmp_path, cache, victim):
    """SIGKILL to one of two: the other says so and leaves with 76 within a minute; the run goes on alone."""
    flags = ("--config.training.n_iters=4000", "--config.training.eval_freq=0")
    both = start_together(2, tmp_path, *flags, cache=cache)
    while not saved(tmp_path):
        assert both[0].poll() is None and both[1].poll() is None
        time.sleep(0.1)
    both[victim].kill()
    began = time.monotonic()
    output = finish(both[1 - victim], 76)
    both[victim].communicate()
    assert time.monotonic() - began < 60
    said = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and f"process {victim} " in said[0] and "the newest state is of step" in said[0]
    assert "Traceback" not in output and "terminate" not in output
    run(tmp_path, f"--config.training.n_iters={saved(tmp_path)[-1] + 1}", cache=cache)


@pytest.mark.slow
def test_two_processes_stop_together_and_save_by_the_clock_of_one(whole, tmp_path, cache):
    """SIGTERM to one of two: both leave with 75 at one step; a SIGKILL costs the steps since the clock's last save."""
    flags = ("--config.training.snapshot_freq_for_preemption=0", "--config.training.save_minutes=0.002")
    for moment, codes in (("step:17:SIGTERM", (75, 75)), ("step:31:SIGKILL", (76, -9))):
        started = zip(("none", moment), places(2), strict=True)
        both = [launch(tmp_path, *flags, cache=cache, moment=when, **place) for when, place in started]
        for process, code in zip(both, codes, strict=True):
            finish(process, code)
        assert saved(tmp_path)
        assert moment.endswith("KILL") or saved(tmp_path)[-1] == 19  # a loop after that of step 18
    assert saved(tmp_path)[-1] > 19
    run_together(2, tmp_path, *flags, cache=cache)
    assert largest_difference(tmp_path, whole) <= 1e-6
