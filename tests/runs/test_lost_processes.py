"""One of two processes is killed or stopped, wherever it is: the other ends in a line, and the run goes on bitwise."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.launch import finish, launch, losses, places, run_together, weights

pytestmark = pytest.mark.slow
EVALUATION = ("--config.eval.jobs=('loss',)", "--config.eval.batch_size=16", "--config.eval.num_repeats=2")
# In a step (the state before may be on its way), with some files of a state written, while its files are hashed.
MOMENTS = {"step:17": ("step 10", "nothing was saved"), "saving:20": ("step 10",), "hashing:30": ("step 20",)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """40 steps by two processes without a break."""
    workdir = tmp_path_factory.mktemp("whole")
    run_together(2, workdir, cache=cache)
    return workdir


@pytest.fixture(scope="module")
def evaluated(whole, cache):
    """An evaluation of them, in the folder `eval`."""
    run_together(2, whole, *EVALUATION, mode="eval", cache=cache)
    return whole


def stopped(process) -> bool:
    """Whether a process was killed, or stands still."""
    if process.poll() is not None:
        return True
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def lose(workdir, *flags, moment, victim, number, **options):
    """Run two processes, one of which is lost at a moment; returns the line of the other, and its seconds."""
    when = [f"{moment}:{number}" if i == victim else "none" for i in range(2)]
    both = [launch(workdir, *flags, moment=when[i], **options, **place) for i, place in enumerate(places(2))]
    while not stopped(both[victim]):
        assert both[1 - victim].poll() is None
        time.sleep(0.05)
    began = time.monotonic()
    output = finish(both[1 - victim], 76)
    seconds = time.monotonic() - began
    both[victim].kill()
    both[victim].communicate()
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert f"process {victim}" in line and "is lost: start all processes again with the same command" in line
    assert seconds < 60 and "Traceback" not in output and "terminate" not in output
    print(f"{number} to process {victim} at {moment}: {seconds:.1f} s: {line}")
    return line


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("number", ["SIGKILL", "SIGSTOP"])
def test_training_loses_a_process_again_and_again(whole, tmp_path, cache, victim, number):
    for moment, newest in MOMENTS.items():
        line = lose(tmp_path, moment=moment, victim=victim, number=number, cache=cache)
        assert any(word in line for word in newest)
    run_together(2, tmp_path, cache=cache)
    assert losses(tmp_path) == losses(whole)
    for one, other in zip(weights(tmp_path, 40), weights(whole, 40), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("victim, number", [(0, "SIGKILL"), (1, "SIGSTOP")])
def test_an_evaluation_loses_a_process(evaluated, cache, victim, number):
    options, folder = {"mode": "eval", "cache": cache}, f"lost{victim}{number}"
    flags = (*EVALUATION, f"--eval_folder={folder}")
    lose(evaluated, *flags, moment="after:loss.5", victim=victim, number=number, **options)
    assert not (evaluated / folder / "40" / "loss" / "result.json").exists()
    run_together(2, evaluated, *flags, **options)
    found = [json.loads((evaluated / name / "40" / "loss" / "result.json").read_text()) for name in ("eval", folder)]
    assert found[0] == found[1]


def test_a_process_that_goes_on_after_the_others_are_gone_ends_too(tmp_path, cache):
    moments = "none", "step:17:SIGSTOP"
    both = [launch(tmp_path, moment=moments[i], cache=cache, **place) for i, place in enumerate(places(2))]
    finish(both[0], 76)
    both[1].send_signal(signal.SIGCONT)
    began = time.monotonic()
    output = finish(both[1], 76)
    assert time.monotonic() - began < 60 and output.count("error: ") == 1
