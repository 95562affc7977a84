"""A run on an object store is that of a disk, bitwise: stopped, killed in a save, gone on with, evaluated, reported."""

import json
import time

import numpy as np
import pytest

from score_flow.runs import stores
from score_flow.runs.places import local, place_of
from tests import emulators
from tests.launch import finish, launch, losses, places, run, run_together, weights

pytestmark = pytest.mark.slow

EVAL = (
    "--config.eval.jobs=('loss','samples')",
    "--config.eval.enable_loss=False",
    "--config.eval.enable_sampling=False",
    "--config.eval.enable_bpd=False",
    "--config.eval.batch_size=64",
    "--config.eval.num_samples=100",
    "--config.sampling.method=heun",
    "--config.sampling.n_steps=5",
)


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request):
    """(scheme, what a process must know to get there)."""
    if missing := emulators.missing(request.param):
        pytest.skip(f"not installed: {missing}")
    with emulators.here(request.param) as variables:
        yield request.param, variables


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def whole(request, tmp_path_factory, cache):
    """(how many processes, a run of 40 steps on a disk and its evaluation, without a break)."""
    workdir = tmp_path_factory.mktemp("whole")
    run_together(request.param, workdir, cache=cache)
    run_together(request.param, workdir, *EVAL, mode="eval", cache=cache)
    return request.param, workdir


def broken_off(n: int, workdir: str, *flags: str, moment: str, **options) -> str:
    """Run n processes, to the first of which something happens; returns what that one printed."""
    kill = moment.endswith("SIGKILL")
    started = zip((moment, *["none"] * (n - 1)), places(n), strict=True)
    together = [launch(workdir, *flags, moment=when, **options, **place) for when, place in started]
    said = [finish(process, (76 if i else -9) if kill else 75) for i, process in enumerate(together)]
    return said[0]


def alike(copy, expected) -> None:
    """Every row of the log and every array of the milestone at step 40 are those of another run, bitwise."""
    assert losses(copy) == losses(expected)
    for one, other in zip(weights(copy, 40), weights(expected, 40), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_on_a_store_is_that_of_a_disk(bucket, whole, cache):
    (scheme, variables), (n, expected) = bucket, whole
    workdir, options = f"{scheme}://bucket/run{n}", {"cache": cache, **variables}
    broken_off(n, workdir, moment="step:17:SIGTERM", **options)
    broken_off(n, workdir, moment="saving:30:SIGKILL", **options)
    output = broken_off(n, workdir, moment="hashing:40:SIGKILL", **options)
    assert f"run directory: {workdir}" in output and "is damaged" not in output
    run_together(n, workdir, **options)
    broken_off(n, workdir, *EVAL, mode="eval", moment="round:3:SIGTERM", **options)
    broken_off(n, workdir, *EVAL, mode="eval", moment="before:samples.1:SIGKILL", **options)
    run_together(n, workdir, *EVAL, mode="eval", **options)
    copy = local(place_of(workdir))
    alike(copy, expected)
    one, other = (json.loads((place / "eval" / "40" / "results.json").read_text()) for place in (copy, expected))
    assert one == other and one["samples"]["n_samples"] == 100
    pages = [(place / "report.html").read_text() for place in (copy, expected)]
    assert all("Training" in page and "Samples" in page for page in pages)
    run(copy, cache=cache)  # brought to a disk it is a run there too: every byte is hashed


def test_two_runs_at_once(bucket, cache):
    scheme, variables = bucket
    workdir, options = f"{scheme}://bucket/two", {"cache": cache, **variables}
    first = launch(workdir, "--config.training.n_iters=100000", **options)
    place = place_of(workdir)
    while not stores.listed(place / ".leases"):
        assert first.poll() is None
        time.sleep(0.2)
    output = run(workdir, expected=2, **options)
    line = output.strip().splitlines()[-1]
    assert line.startswith(f"error: {workdir} is in use by another run (process {first.pid} on ")
    first.terminate()
    finish(first, 75)
    assert stores.listed(place / "checkpoints-meta")
