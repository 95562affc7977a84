"""Every job of evaluation/, killed at random rounds and gone on in other batches and on other devices."""

import dataclasses
import functools
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.fold import run as run_fold
from evaluation.jobs import calls
from evaluation.jobs.base import find
from evaluation.metrics.extractors import small
from evaluation.modes.statistics import write_statistics
from evaluation.run import Visit, folds_of, prepared
from score_flow.build import experiment
from score_flow.config import registries
from score_flow.config.loading import load
from score_flow.errors import Preempted
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.sharding import make_mesh
from score_flow.training import dequantiser as train_deq

TINY = (
    "path.name=vp", "sampling.name=ddim", "sampling.n_steps=2", "dequantizer.name=small", "dequantizer.width=4",
    "eval.num_samples=300", "eval.seeds=2", "eval.solver.method=heun", "eval.solver.n_steps=2", "eval.vlb_steps=4",
    "eval.bound_times=2", "eval.smallest_time=0.01", "eval.num_repeats=2", "eval.save_npz=True", "eval.num_images=200",
)  # fmt: skip
DENOISER = ("network.name=mlp", "network.width=8", "network.depth=1", *TINY)
CLASSIFIER = (
    "network.name=classifier", "network.blocks_per_group=1", "network.channel_multiplier=1",
    "training.objective=classifier", "training.snapshot_sampling=False", *TINY,
)  # fmt: skip
# (eval.batch_size, devices): without a break, and where it is broken off twice
WHOLE, PARTS = (104, 8), ((40, 1), (64, 8), (100, 1))


class Killed(BaseException):
    """As by SIGKILL: nothing is saved any more."""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The folder of a run; what is slow is done once, and the table of samplers is short."""
    fit = functools.cache(lambda labelled: small_fit(made(DENOISER, *WHOLE)[0].train_source, labelled))
    small_fit = small.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "fit", lambda train, labelled: fit(labelled))
        patch.setattr(calls, "SAMPLERS", {"DDIM": ((1, 2), lambda n: {"name": "ddim", "n_steps": n})})
        yield tmp_path_factory.mktemp("run")


def statistics(workdir):
    write_statistics(*made(DENOISER, *WHOLE), workdir)


def dequantiser(workdir):
    run, config = made(DENOISER, *WHOLE)
    image = jnp.zeros((1, *run.image_shape))
    weights = train_deq.build_network(config.dequantizer, run.image_shape).init(jax.random.key(0), image, image)[
        "params"
    ]
    found = Checkpoints(workdir / train_deq.FOLDER / "checkpoints")
    meta = {"config": json.loads(config.to_json()), "weights": {"raw": "raw", "ema": "ema"}, "step": 1}
    found.save(1, {"params": weights, "ema": [weights]}, meta, wait=True)
    found.close()


def existing(workdir):
    statistics(workdir)
    images = np.random.default_rng(0).integers(0, 17, (300, 8, 8, 1), np.uint8)
    np.savez(workdir / "images.npz", image=images)


# What a job needs in the workdir, and of the config
FIRST = {"fid": statistics, "likelihood_variational": dequantiser, "images": existing, "sweep": statistics}
FLAGS = {
    "code": lambda workdir: ("eval.num_images=20", "eval.code_lanes=4"),  # one bit after the other
    "images": lambda workdir: (f"eval.samples={workdir}/images.npz",),
    "likelihood_flow_map": lambda workdir: (
        "model.span=True", "training.objective=flow_map", "training.weighting=velocity", "sampling.name=flow_map",
    ),
    "sweep": lambda workdir: ("eval.sweep=(1.0,2.0)", "model.class_conditional=True", "training.label_dropout=0.1"),
}


@functools.cache
def made(flags, size, devices):
    """(run, config) with so large a batch on so many devices."""
    config = load("configs/digits.py", [f"--config.{flag}" for flag in (*flags, f"eval.batch_size={size}")])
    run = experiment(config)
    mesh = (
        make_mesh() if devices == 8 else jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    )
    return dataclasses.replace(run, mesh=mesh), config


def fold_of(job, workdir, folder, size, devices):
    """What a job does, on parameters that are drawn anew, in a folder."""
    own = FLAGS.get(job, lambda workdir: ())(workdir)
    flags = (*(CLASSIFIER if find(job).needing("classifier") else DENOISER), f"eval.only=('{job}',)", *own)
    run, config = made(flags, size, devices)
    wanted = prepared(run, config, workdir, "eval")
    replicated = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
    params = jax.device_put(jax.jit(run.init)(jax.random.key(0)), replicated)
    if job == "sweep":  # the last layer is 0 at first, which makes all scales equal
        params = jax.tree.map(lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params)
    visit = Visit(Checkpoints(folder), 1, folder, {"weights": "raw", "checkpoint": "drawn"})
    [(_, fold)] = folds_of(wanted, visit, params)
    return fold


def broken(fold, by, at, monkeypatch):
    """The fold, which ends as by SIGKILL before a round, or as by SIGTERM in it."""
    seen, save = [], Checkpoints.save
    # What is being saved in the background would go on in this process after its "death".
    monkeypatch.setattr(Checkpoints, "save", lambda self, *args, wait: save(self, *args, wait=True))

    def step(state):
        seen.append(0)
        if len(seen) == at and by is Killed:
            raise Killed
        if len(seen) == at:
            monkeypatch.setattr("evaluation.fold.Preemption.agreed", lambda self: True)
        return fold.step(state)

    return fold._replace(step=step)


def result_of(folder):
    """(figures, arrays) that a job left."""
    arrays = {}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file, allow_pickle=False) as opened:
            arrays |= {f"{file.name}:{name}": opened[name] for name in opened.files}
    return json.loads((folder / "result.json").read_text()), arrays


def same(one, other, name):
    """Numbers to 1e-5; levels may fall to the other side of a border, once in a thousand; else equal."""
    if isinstance(one, list) and one and isinstance(one[0], dict):  # rows of a table
        assert len(one) == len(other)
        for row, another in zip(one, other, strict=True):
            assert row.keys() == another.keys()
            for key, value in row.items():
                same(value, another[key], f"{name}.{key}")
        return
    one, other = np.asarray(one), np.asarray(other)
    assert one.shape == other.shape, name
    if one.dtype == np.uint8:
        assert (one != other).mean() < 1e-3, name
    elif one.dtype.kind == "f":
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5, err_msg=name)
    else:
        assert (one == other).all(), name


QUICK = ("samples",)  # the loss is killed in a process of its own, by test_resume_evaluation


@pytest.mark.parametrize(
    "job", [pytest.param(job, marks=[] if job in QUICK else pytest.mark.slow) for job in registries.JOBS.names()]
)
def test_killed_and_gone_on_otherwise(job, workdir, tmp_path, monkeypatch):
    """By SIGKILL, then by SIGTERM, each time with another batch and another device count: the same in every figure."""
    FIRST.get(job, lambda workdir: None)(workdir)
    folder, broken_folder = (tmp_path / name / job for name in ("whole", "broken"))
    run_fold(fold_of(job, workdir, folder.parent, *WHOLE), folder, job)
    random = np.random.default_rng(zlib.crc32(job.encode()))
    for by, (size, devices) in zip((Killed, Preempted, None), PARTS, strict=True):
        fold = fold_of(job, workdir, broken_folder.parent, size, devices)
        if by is None:
            run_fold(fold, broken_folder, job)
            continue
        at = int(random.integers(1, 1 + min(3, fold.n_rounds(fold.init()))))
        with monkeypatch.context() as patch, pytest.raises(by):
            run_fold(broken(fold, by, at, patch), broken_folder, job)
    (one, arrays_one), (other, arrays_other) = result_of(folder), result_of(broken_folder)
    assert arrays_one.keys() == arrays_other.keys() and one.keys() == other.keys()
    for name, value in (one | arrays_one).items():
        same(value, (other | arrays_other)[name], name)
