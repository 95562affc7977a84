"""The two folds of which jobs are made, with work that costs nothing: every image and sample once, in any batches."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.context import Context, build_guide
from evaluation.fold import Rows
from evaluation.fold import run as run_fold
from evaluation.jobs.base import Job
from evaluation.jobs.rounds import Each, drawn, per_image
from sampling.base import Samples, example_keys, normal
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import NonFinite, UserError
from score_flow.runs.sharding import make_mesh
from tests.launch import TINY

N = 50
ONE = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
RUN = experiment(CONFIG := load("configs/digits.py", [flag for flag in TINY if not flag.startswith("--config=")]))


class Killed(Exception):
    pass


def noise(keys, denoiser, shape):
    """A sampler without a network."""
    return Samples(jnp.tanh(normal(keys, shape, 0)), jnp.asarray(3), jnp.ones(keys.shape, bool))


def context(directory, size, mesh=ONE, **changed):
    run = dataclasses.replace(RUN, mesh=mesh)
    options = dataclasses.replace(CONFIG.eval, batch_size=size, num_samples=N)
    found = Context(run, {}, 1, noise, build_guide(run, CONFIG), options, directory, job="toy", key={"job": "toy"})
    return dataclasses.replace(found, **changed)


# A whole job, as a person would write it.


def brightness(context, opened):
    """The mean level of the images, and how often noise of each image's own exceeds it."""

    def compute(params, batch, seeds):
        mean = batch["image"].astype(float).mean(axis=(1, 2, 3))
        return {"mean": mean, "noise": normal(example_keys(0, seeds), (), 0)}, None

    def finish(state):
        return {"level": float(state["mean"].mean()), "noise": state["noise"].tolist(), **context.about(2)}

    return per_image(context, compute, finish, repeats=2)


job = Job(brightness, needs=frozenset({"split", "pixels"}))


def samples(context, opened):
    """The levels of samples, kept and added up."""
    add = lambda state, indices, arrays: {"sum": state["sum"] + arrays["image"].sum()}  # noqa: E731
    each = Each(("image",), lambda: {"sum": np.zeros((), np.int64)}, add)

    def finish(state, kept):
        return {"sum": int(state["sum"]), "image": kept["image"][0].tolist(), "calls": state["calls"].tolist()}

    return drawn(context, finish, keep=("image",), each=each)


def killed(fold, at):
    """The fold, which dies before a round of this process; what was saved before is on disk."""
    rounds = []

    def step(state):
        rounds.append(0)
        if len(rounds) > at:
            raise Killed
        return fold.step(state)

    return fold._replace(step=step)


@pytest.fixture
def whole_saves(monkeypatch):
    """A save in the background would go on in this process after its "death"."""
    from score_flow.runs.checkpoint import Checkpoints

    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda self, *args, wait: save(self, *args, wait=True))


@pytest.mark.parametrize("build", [brightness, samples])
def test_any_batches_on_any_devices(build, tmp_path, whole_saves):
    """Killed twice, each time gone on with in other batches and on other devices: the same to the last bit."""
    expected = run_fold(build(context(tmp_path / "whole", 64, make_mesh()), None), tmp_path / "whole", "toy")
    for size, mesh, at in ((7, ONE, 2), (16, make_mesh(), 1)):
        with pytest.raises(Killed):
            run_fold(killed(build(context(tmp_path / "broken", size, mesh), None), at), tmp_path / "broken", "toy")
    assert run_fold(build(context(tmp_path / "broken", 23), None), tmp_path / "broken", "toy") == expected
    assert not (tmp_path / "broken" / "rows").exists()  # what rounds left on disk has done its service


def test_what_a_round_did_is_not_done_again(tmp_path, whole_saves):
    """Of what was saved nothing is computed anew."""
    seen, fold = [], brightness(context(tmp_path, 100), None)
    with pytest.raises(Killed):
        run_fold(killed(fold, 2), tmp_path, "toy")
    again = brightness(context(tmp_path, 60), None)
    step = lambda state: seen.append(int((~state["done"]).sum())) or again.step(state)  # noqa: E731
    result = run_fold(again._replace(step=step), tmp_path, "toy")
    # The first round was saved. Of the first pass 197 images are left, of the second 297.
    assert seen[0] == 2 * 297 - 100 and len(seen) == 4 + 5 and result["n_images"] == 297


def test_what_is_not_finite_is_named(tmp_path):
    def compute(params, batch, seeds):
        return {"x": jnp.where((seeds == 3) | (seeds == 41), jnp.nan, 1.0)}, None

    with pytest.raises(NonFinite, match=r"toy: images \[3, 41\] did not arrive, .* not finite: try more steps\."):
        run_fold(per_image(context(tmp_path, 64), compute, dict, advice=": try more steps"), tmp_path, "toy")
    assert not (tmp_path / "result.json").exists()

    def refused(keys, denoiser, shape):
        return noise(keys, denoiser, shape)._replace(ok=jnp.arange(len(keys)) != 5)

    with pytest.raises(NonFinite, match=r"samples \[5\] are not finite"):
        run_fold(samples(context(tmp_path, 64, sampler=refused), None), tmp_path, "toy")


def test_rows_in_any_order(tmp_path):
    """Every row at its place, over what an earlier write left; gone rows are an error in one line."""
    rows, full = Rows(tmp_path / "rows"), np.arange(12 * 3, dtype=np.float32).reshape(12, 3)
    for indices in ([5, 6, 7, 0], [1, 2, 11], [6, 3, 4, 8, 9, 10]):
        rows.write({"x": full[indices]}, (2, 6), np.asarray(indices), begun=bool(list(Path(tmp_path).iterdir())))
    np.testing.assert_array_equal(rows.read()["x"], full.reshape(2, 6, 3))
    (tmp_path / "rows" / "x.npy").write_bytes(b"short")
    for lost in (lambda: rows.write({"x": full[:1]}, (2, 6), np.asarray([0]), begun=True), rows.read):
        with pytest.raises(UserError, match="remove"):
            lost()
