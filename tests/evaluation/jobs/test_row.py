"""A row of figures: every distance beside the first, of its own features, in one pass, whatever the reference has."""

import dataclasses
import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import PyTree

from evaluation.context import Context, build_guide
from evaluation.fold import run as run_fold
from evaluation.jobs import fid
from evaluation.metrics import statistics
from evaluation.metrics.extractors import base
from evaluation.metrics.frechet import frechet_distance, moments
from evaluation.modes.statistics import write_statistics
from evaluation.report import results as written
from sampling.building import build_sampler
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.errors import UserError

N = 60
FLAGS = (
    "network.name=mlp", "network.width=8", "network.depth=1", "sampling.name=ddim", "sampling.n_steps=2",
    f"eval.num_samples={N}", "eval.save_npz=True", "eval.batch_size=1000", "eval.seeds=2",
    "model.class_conditional=True", "eval.label_order=uniform",
)  # fmt: skip
SPACES = {"pool": slice(0, 20), "sfid": slice(20, 44), "fd_dinov2": slice(44, 56)}


class Stripes(base.Extractor):
    """Three parts of the pixels as the features of three networks."""

    scale: PyTree
    names: ClassVar[base.Names] = base.INCEPTION
    more = {"sfid": ("a network", 24), "fd_dinov2": ("another", 12)}  # noqa: RUF012 - a class of this test

    def __call__(self, images):
        flat = images.reshape(len(images), -1).astype(jnp.float32) * self.scale
        parts = {name: flat[:, part] for name, part in SPACES.items()}
        return base.Features(parts.pop("pool"), None, parts)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(workdir with statistics, run, config), compared by three spaces."""
    workdir = tmp_path_factory.mktemp("run")
    config = load("configs/digits.py", [f"--config.{flag}" for flag in FLAGS])
    run, extractor = experiment(config), Stripes("a network", 20, jnp.ones(()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "extractor_of", lambda run, options: extractor)
        file = write_statistics(run, config, workdir)
        yield workdir, run, config, file


def done(prepared, folder, **options):
    workdir, run, config, _ = prepared
    changed = dataclasses.replace(config.eval, **options)
    params = run.init(jax.random.key(0, impl="rbg"))
    opened = fid.open_reference(run, changed, workdir)
    guide = build_guide(run, config)
    context = Context(run, params, 1, build_sampler(config), guide, changed, folder, workdir=workdir)
    return run_fold(fid.build(context, opened.value), folder, "fid"), opened.of


@pytest.fixture(scope="module")
def row(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    result, of = done(prepared, folder)
    with np.load(folder / "samples.npz") as archive:
        levels = np.rint(archive["arr_0"] * (16 / 255)).reshape(N, -1)
    return result, of, levels


def test_every_distance_is_that_of_its_features(prepared, row):
    result, _, levels = row
    train = prepared[1].train_source
    real = train.read(np.arange(len(train)))["image"].reshape(len(train), -1)
    for name, distance in (("pool", "fid"), ("sfid", "sfid"), ("fd_dinov2", "fd_dinov2")):
        part = SPACES[name]
        expected = frechet_distance(*moments(levels[:, part]), *moments(real[:, part]))
        assert result["by_seed"][0][distance] == pytest.approx(expected, rel=1e-9), distance


def test_a_row_says_all_that_it_is_of(row):
    """Distances with their spread over seeds, precision and recall, the reference, the labels, and whose features."""
    result, _, _ = row
    for name in ("fid", "fd_dinov2", "sfid", "precision", "recall"):
        values = [figures[name] for figures in result["by_seed"]]
        assert result[name] == pytest.approx(np.mean(values)) and result[f"{name}_std"] == np.std(values, ddof=1)
    assert (result["n_seeds"], result["split"], result["labels"]) == (2, "digits/train", "drawn uniformly")
    said = {line.partition(" = ")[0]: line for line in written.lines({"fid": result}, weights="w", split="digits/test")}
    for name, features in (("fid", "a network"), ("fd_dinov2", "another"), ("sfid", "a network")):
        line = said[f"fid.{name}"]
        assert f"+- {result[f'{name}_std']:.2g} over seeds 0, 1; {N} samples; " in line
        assert re.search(r"; data digits/train; reference [\w-]+.npz \(sha256 \w{16}\);", line)
        assert re.search(f" labels drawn uniformly; evaluator {features}$", line)
    assert not [name for name in said if name.endswith("_std")]
    few = [line for line in written.lines({"fid": result | {"n_kept": 7}}, weights="w") if "7 of them kept; " in line]
    assert {re.sub(r"(fid\.[a-z]+).*", r"\1", line) for line in few} == {"fid.kid", "fid.precision", "fid.recall"}


@pytest.mark.slow
def test_batches_change_no_distance(prepared, row, tmp_path):
    result, _ = done(prepared, tmp_path, batch_size=24)
    for name in ("fid", "fd_dinov2", "sfid"):
        assert result[name] == pytest.approx(row[0][name], rel=1e-9)


def without(file, target, *names):
    with np.load(file) as archive:
        np.savez(target, **{name: archive[name] for name in archive.files if name not in names})
    return str(target)


def test_a_reference_of_fewer_features(prepared, row, tmp_path):
    """sFID is left out where the reference does not have it; FD-DINOv2, which was asked for, is not."""
    _, run, config, file = prepared
    bare = without(file, tmp_path / "bare.npz", "mu_s", "sigma_s")
    result, of = done(prepared, tmp_path / "job", stats=bare, num_samples=10, seeds=1)
    assert "sfid" not in result and "fd_dinov2" in result
    assert row[1]["more features"] == {"sfid": "a network", "fd_dinov2": "another"}
    assert of["more features"] == {"fd_dinov2": "another"}
    for names, said in (
        (("mu_fd_dinov2", "sigma_fd_dinov2"), "has none of another, which config.eval.extractor asks for"),
        (("more_features",), None),
    ):
        given = without(file, tmp_path / "other.npz", *names)
        options = dataclasses.replace(config.eval, stats=given)
        if said is None:
            fid.open_reference(run, options, tmp_path)
        else:
            with pytest.raises(UserError, match=said):
                fid.open_reference(run, options, tmp_path)


def test_features_of_other_networks_are_refused(prepared, tmp_path):
    _, run, config, file = prepared
    with np.load(file) as archive:
        other = dict(archive) | {"more_features": '{"fd_dinov2": "a third"}'}
    np.savez(tmp_path / "other.npz", **other)
    options = dataclasses.replace(config.eval, stats=str(tmp_path / "other.npz"))
    with pytest.raises(UserError, match="has features of fd_dinov2 other than this run's: a third, here another"):
        fid.open_reference(run, options, tmp_path)
