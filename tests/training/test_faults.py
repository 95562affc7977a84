"""Steps that are not finite: skipped on the device, or rolled back from; interruptions and programs change nothing."""

import json

import numpy as np
import pytest

from score_flow.errors import NonFinite, Preempted, UserError
from score_flow.runs.progress import CLOCK, read_lines
from score_flow.training.faults import SKIPS, TRIES, Faults
from score_flow.training.optimiser import Rate
from tests.launch import finish, start_together, weights
from tests.training.fragile import fit, fragile, key_of

run = pytest.fixture(fragile, scope="module")


def rows(workdir):
    """The log, without what a clock says."""
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in read_lines(workdir / "metrics.jsonl")]


def assert_same(one, other):
    assert rows(one) == rows(other)
    for ours, theirs in zip(weights(one, 30), weights(other, 30), strict=True):
        np.testing.assert_array_equal(ours, theirs)


SKIP = "training.non_finite=skip"
BAD = [key_of(7), key_of(8), key_of(19)]


@pytest.fixture(scope="module")
def skipped(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("skipped")
    fit(run, workdir, SKIP, bad=BAD)
    return workdir


def assert_same_with_interruptions(run, workdir, whole, moments, policy, bad):
    for moment in moments:
        with pytest.raises((Preempted, LookupError)):
            fit(run, workdir, policy, bad=bad, moment=moment)
    fit(run, workdir, policy, bad=bad)
    assert_same(workdir, whole)


def test_a_skipped_step_changes_nothing_but_the_step(run, skipped, tmp_path, capsys):
    """Counted and logged; the optimiser, its rate, the averages and the time sampler saw the other 27 steps."""
    found = {row["step"]: row for row in rows(skipped)}
    assert list(found) == list(range(1, 31))
    assert [step for step, row in found.items() if "loss" not in row] == [7, 8, 19]
    counts = [sum(bad <= step for bad in (7, 8, 19)) for step in found]
    assert [row["skipped"] for row in found.values()] == counts
    rate = Rate(0.1, "cosine", 2, 30)
    updates = [step - 1 - sum(bad < step for bad in (7, 8, 19)) for step in found]
    np.testing.assert_allclose([row["lr"] for row in found.values()], [rate(n, np) for n in updates], rtol=1e-12)
    leaves = weights(skipped, 30)
    assert sorted(int(leaf) for leaf in leaves if leaf.dtype == np.int32) == [27, 27, 30]  # two of the optimiser's
    assert 27.0 in [float(leaf) for leaf in leaves if leaf.shape == ()]  # of the time sampler
    fit(run, tmp_path, SKIP, "training.n_iters=8", "optim.schedule=constant", bad=BAD)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert said == ["warning: step 7: loss nan, gradient norm nan: skipped, as others will be, unsaid."]
    after = weights(tmp_path, 8)
    fit(run, tmp_path / "six", SKIP, "training.n_iters=6", "optim.schedule=constant")
    for one, other in zip(weights(tmp_path / "six", 6), after, strict=True):
        np.testing.assert_array_equal(one, np.where(other == 8, 6, other) if other.dtype == np.int32 else other)


@pytest.mark.parametrize(
    "moments",
    [
        pytest.param([(8, "SIGTERM"), (25, "SIGKILL")], marks=pytest.mark.slow),
        pytest.param([(9, "SIGKILL"), (20, "SIGTERM"), (21, "SIGKILL")], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_interrupted_it_skips_the_same(run, skipped, tmp_path, moments):
    assert_same_with_interruptions(run, tmp_path, skipped, moments, SKIP, BAD)


@pytest.mark.slow
def test_programs_of_several_steps_skip_the_same(run, skipped, tmp_path):
    fit(run, tmp_path, SKIP, "training.n_jitted_steps=5", bad=BAD)
    for one, other in zip(rows(tmp_path), rows(skipped), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


@pytest.mark.slow
def test_too_many_in_a_row_end_training_at_the_same_step_after_an_interruption(run, tmp_path):
    flags = (SKIP, "training.n_iters=60", "training.snapshot_freq_for_preemption=7")
    bad = [key_of(step) for step in [3, *range(12, 50)]]
    last = 12 + SKIPS - 1
    with pytest.raises(Preempted):
        fit(run, tmp_path, *flags, bad=bad, moment=(16, "SIGTERM"))
    for _ in range(2):
        with pytest.raises(NonFinite, match=rf"^step {last}: loss nan, .*and so were the {SKIPS - 1} steps before it"):
            fit(run, tmp_path, *flags, bad=bad)
    assert rows(tmp_path)[-1]["skipped"] == SKIPS and "loss" not in rows(tmp_path)[-1]


BACK = "training.non_finite=rollback"


@pytest.fixture(scope="module")
def rolled(run, tmp_path_factory):
    """Not finite at step 15, and again at 16, now of another key: twice back to 10; at 27 back to 20."""
    workdir = tmp_path_factory.mktemp("rolled")
    fit(run, workdir, BACK, bad=ONCE)
    return workdir


SEEDS = [Faults(rollbacks=n).seed_of(0) for n in range(4)]
ONCE = [key_of(15), key_of(16, SEEDS[1]), key_of(27, SEEDS[2])]


def test_a_rollback_goes_on_from_the_last_state_with_other_batches(run, rolled, tmp_path):
    found = rows(rolled)
    assert [row["step"] for row in found] == list(range(1, 31)) and len(set(SEEDS)) == 4
    assert [row["rollbacks"] for row in found] == [0] * 10 + [2] * 10 + [3] * 10
    fit(run, tmp_path, "training.non_finite=stop")
    other = rows(tmp_path)
    np.testing.assert_allclose([r["loss"] for r in found[:10]], [r["loss"] for r in other[:10]], rtol=1e-5)
    assert all(ours["loss"] != theirs["loss"] for ours, theirs in zip(found[10:], other[10:], strict=True))
    metas = [json.loads((workdir / "checkpoints/30/meta/metadata").read_text()) for workdir in (rolled, tmp_path)]
    assert metas[0]["faults"] == {"rollbacks": 3, "back_to": 30} and "faults" not in metas[1]


@pytest.mark.parametrize(
    "moments",
    [
        [(12, "SIGTERM"), (13, "SIGTERM"), (14, "SIGTERM"), (26, "SIGTERM")],  # states that are none to go back to
        pytest.param([(16, "SIGKILL"), (17, "SIGTERM"), (29, "SIGKILL")], marks=pytest.mark.slow),  # within an attempt
    ],
    ids=str,
)
def test_interrupted_it_goes_back_to_the_same(run, rolled, tmp_path, moments):
    assert_same_with_interruptions(run, tmp_path, rolled, moments, BACK, ONCE)


@pytest.mark.slow
def test_states_saved_by_the_clock_are_none_to_go_back_to(run, rolled, tmp_path):
    fit(run, tmp_path, BACK, "training.save_minutes=1e-9", bad=ONCE)
    assert_same(tmp_path, rolled)


def test_what_happens_again_ends_training(run, tmp_path, capsys):
    """Before anything is saved, too: then from the beginning."""
    with pytest.raises(NonFinite, match=rf"^step \d+: loss nan.*: the {TRIES + 1}th time since step 0, each") as error:
        fit(run, tmp_path, BACK, limit=0.3)
    assert "\n" not in str(error.value)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert [line[-13:] for line in said] == [f"(rollback {n})." for n in (1, 2, 3)]
    assert all("back to step 0, with other batches and noise" in line for line in said)


@pytest.mark.slow
def test_a_policy_may_change_on_the_way(run, rolled, tmp_path):
    """What was met before stays: the rest of the run has the randomness of the rollbacks."""
    with pytest.raises(Preempted):
        fit(run, tmp_path, BACK, bad=ONCE, moment=(29, "SIGTERM"))
    fit(run, tmp_path, "training.non_finite=stop", bad=ONCE)
    ours, theirs = rows(tmp_path)[-1], rows(rolled)[-1]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5) and "rollbacks" not in ours


def test_programs_that_do_not_divide_the_saves_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="n_jitted_steps is 3, which does not divide .*_for_preemption = 10"):
        fit(run, tmp_path, BACK, "training.n_jitted_steps=3")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("policy, word", [("skip", f"the {SKIPS - 1} steps before"), ("rollback", "4th time since")])
def test_two_processes_do_the_same(tmp_path, cache, policy, word):
    """A learning rate that overflows: both end alike, in one line."""
    flags = ("--config.optim.lr=1e6", "--config.optim.grad_clip=0.", "--config.network.depth=3")
    save = ("--config.training.snapshot_freq_for_preemption=0", f"--config.training.non_finite={policy}")
    for process in start_together(2, tmp_path, *flags, *save, cache=cache):
        assert word in finish(process, 3)
