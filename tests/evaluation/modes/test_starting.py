"""training.init: a new run begins with the weights of another, or of a published file, and needs them no more."""

import json
import shutil

import jax
import numpy as np
import pytest

from evaluation.modes.compare import compare
from evaluation.modes.importing import open_published
from evaluation.modes.starting import beginning
from main import EXIT_USER_ERROR, main
from score_flow.build import experiment
from score_flow.config.loading import load, with_settings
from score_flow.runs import stores
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.places import local, place_of
from score_flow.runs.sharding import replicated
from score_flow.training import history
from tests import emulators
from tests.golden_data import golden_dir
from tests.golden_data import load as golden
from tests.launch import TINY, losses, run, weights

SMALL = (*TINY, "--config.network.width=8", "--config.training.n_iters=3", "--config.training.eval_freq=0")
CLASSES = ("--config.model.class_conditional=True",)


def command(workdir, *flags, mode="train"):
    return main([*SMALL, f"--workdir={workdir}", f"--mode={mode}", *flags])


def refused(capsys, workdir, *flags, mode="train"):
    """The one line that is said, where nothing is left."""
    capsys.readouterr()
    assert command(workdir, *flags, mode=mode) == EXIT_USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run with ten classes, of three steps."""
    workdir = tmp_path_factory.mktemp("source") / "run"
    assert command(workdir, *CLASSES) == 0
    return workdir


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Images of four classes, as a file."""
    rng, file = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "train.npz"
    image, label = rng.integers(0, 256, (64, 8, 8, 1), np.uint8), np.arange(64, dtype=np.int32) % 4
    np.savez(file, image=image, label=label)
    return (*CLASSES, "--config.data.source.name=arrays", f"--config.data.source.path={file}")


def state(workdir, step, folder="checkpoints"):
    """(parameters, averages, optimiser) of a saved step, by name."""
    checkpoints = Checkpoints(workdir / folder)
    items = {item: checkpoints.layout(step, item) for item in ("params", "ema", "train")}
    found = checkpoints.restore(step, items)
    return found["params"], found["ema"], found["train"]


@pytest.mark.slow
def test_fine_tuning_with_other_classes(source, shapes, tmp_path, capsys):
    """The state at step 0: the source's first average everywhere but in the embedding, fresh averages, no moments."""
    workdir = tmp_path / "run"
    assert command(workdir, *shapes, f"--config.training.init={source}:3") == 0
    said = capsys.readouterr().out
    name = "embedding/label/embedding"
    assert f"config.training.init = {source}:3: {name} is (11, 8) there and (5, 8) here: drawn anew\n" in said
    assert "begins with EMA 0.9 of" in said
    params, ema, train = state(workdir, 0, "checkpoints-meta")
    theirs = state(source, 3)[1][0]
    assert params["embedding"].pop("label")["embedding"].shape == (5, 8)
    for average in ema:
        average["embedding"].pop("label")
    theirs["embedding"].pop("label")
    for ours in (params, *ema):
        assert str(ours) == str(theirs)
    assert int(train["step"]) == 0 and int(train["opt_state"][2]["count"]) == 0
    began = history.read(workdir)["began"]
    assert began["step"] == 3 and began["drawn"] == [name] and began["source"] == str(source)
    assert began["checkpoint"] == Checkpoints(source / "checkpoints").digest(3)
    assert Checkpoints(workdir / "checkpoints").meta(3)["history"]["began"] == began


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--config.network.width=9"], "block_0_0/bias is (8,) there and (9,) here"),
        (["--config.path.name=gvp"], "mean something else (path.name: linear -> gvp;"),
        (["--config.model.prediction=noise"], "--config.training.accept=('prediction',)"),
        (["--config.model.time_scale=1000.0"], "model.time_scale: 999.0 -> 1000.0"),
        (["--config.training.objective=classifier", "--config.network.name=mlp"], "classifier"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(source, tmp_path, capsys, flags, said):
    init = f"--config.training.init={source}"
    assert said in refused(capsys, tmp_path / "run", *CLASSES, init, *flags)
    assert not (tmp_path / "run").exists()


def test_a_source_without_classes_and_one_that_has_more(source, tmp_path, capsys):
    init = f"--config.training.init={source}"
    assert "embedding/label/embedding is (11, 8) there and absent here" in refused(capsys, tmp_path / "run", init)
    assert "there is no run and no file" in refused(capsys, tmp_path / "run", "--config.training.init=/nonexistent:4")
    said = refused(capsys, tmp_path / "run", *CLASSES, f"{init}:2")
    assert said.endswith("has no checkpoint of step 2; it has: 3.")


@pytest.mark.slow
def test_a_flow_map_begins_with_a_trained_velocity(source, tmp_path, capsys):
    """What tells it of a second time is drawn anew, and changes nothing yet."""
    flags = ("--config.model.span=True", "--config.training.objective=flow_map", "--config.training.weighting=velocity")
    assert command(tmp_path, *CLASSES, f"--config.training.init={source}", *flags) == 0
    drawn = history.read(tmp_path)["began"]["drawn"]
    assert drawn == [f"embedding/span_{i}/{leaf}" for i in (0, 1) for leaf in ("bias", "kernel")]
    params, theirs = state(tmp_path, 0, "checkpoints-meta")[0], state(source, 3)[1][0]
    assert not np.any(params["embedding"].pop("span_1")["kernel"]) and params["embedding"].pop("span_0")
    assert str(params) == str(theirs)


@pytest.mark.slow
def test_another_path_is_taken_on_purpose(source, tmp_path, capsys):
    flags = [*CLASSES, f"--config.training.init={source}", "--config.path.name=gvp"]
    assert command(tmp_path, *flags, "--config.training.accept=('path',)") == 0
    assert "though of another meaning: path.name: linear -> gvp" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_has_begun_does_not_begin_again(source, tmp_path, capsys):
    """With other weights; its own may be gone, and a dequantiser of it begins with its own."""
    workdir, first = tmp_path / "run", shutil.copytree(source, tmp_path / "first")
    init = f"--config.training.init={first}"
    assert command(workdir, *CLASSES, init) == 0
    shutil.rmtree(first)
    assert command(workdir, *CLASSES, init, "--config.training.n_iters=4") == 0
    assert "has begun, with EMA 0.9 of" in refused(capsys, workdir, *CLASSES, f"--config.training.init={source}")
    assert "with weights of its own" in refused(capsys, source, *CLASSES, f"--config.training.init={workdir}")
    said = refused(capsys, workdir, *CLASSES, f"--config.training.init={source}", mode="train_deq")
    assert "and a dequantiser not: leave it out" in said


@pytest.mark.slow
def test_interrupted_without_its_source_it_is_bitwise_the_same(tmp_path, cache):
    """A SIGKILL before the first save of the loop: the state of step 0 is what it goes on from."""
    source, whole, broken = (tmp_path / name for name in ("source", "whole", "broken"))
    run(source, cache=cache)
    init = f"--config.training.init={source}"
    run(whole, init, cache=cache)
    run(broken, init, moment="step:5:SIGKILL", cache=cache, expected=-9)
    shutil.rmtree(source)
    run(broken, init, moment="step:23:SIGTERM", cache=cache, expected=75)
    run(broken, init, cache=cache)
    assert losses(broken) == losses(whole) and len(losses(whole)) == 40
    for one, other in zip(weights(broken, 40), weights(whole, 40), strict=True):
        np.testing.assert_array_equal(one, other)
    assert json.loads((broken / "history.json").read_text()) == json.loads((whole / "history.json").read_text())


@pytest.mark.slow
def test_split_over_devices_it_begins_alike(source, tmp_path):
    """The source was not split, the run that begins with it is."""
    init = (*CLASSES, f"--config.training.init={source}")
    assert command(tmp_path / "one", *init) == 0
    assert command(tmp_path / "split", *init, "--config.training.fsdp=True") == 0
    for ours, theirs in zip(losses(tmp_path / "one").values(), losses(tmp_path / "split").values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(bool(emulators.missing("gs")), reason="gcsfs is not installed")
def test_a_source_on_a_store_and_a_run_there(source, tmp_path, cache):
    """The run begins, is gone on with otherwise, and is compared, as on a disk."""
    flags, there = (*SMALL[len(TINY) :], *CLASSES), "gs://bucket/run"
    more = ["--config.training.n_iters=4", "--config.training.batch_size=32", "--config.training.accept=batch_size"]
    with emulators.here("gs") as variables:
        place = place_of("gs://bucket/source")
        for file in (f for f in source.rglob("*") if f.is_file()):
            stores.put(place / str(file.relative_to(source)), file.read_bytes())
        run(there, *flags, f"--config.training.init={place}:3", cache=cache, **variables)
        run(there, *flags, *more, cache=cache, **variables)
        compare([there, str(source)])
        copy = local(place_of(there))
        assert (copy / "compare.html").exists()
    assert command(tmp_path, *CLASSES, f"--config.training.init={source}:3") == 0
    ours, theirs = losses(tmp_path), losses(copy)
    np.testing.assert_allclose([theirs[step] for step in ours], [*ours.values()], rtol=1e-5)
    told = history.told(history.read(copy))
    assert told["training.batch_size"] == "16 until step 3, 32 after" and "gs://bucket/source" in told["began with"]


def test_without_init_there_is_nothing_to_begin_with():
    config = load(TINY[0].split("=")[1], list(TINY[1:]))
    assert beginning(experiment(config), config) is None


# ---- published files

SIT = golden_dir() / "sit/models"


FILES = sorted(file for file in SIT.glob("*.pt") if file.with_suffix(".json").exists())


def of_file(file, more=0, **flags):
    """(what a run of a golden SiT, for more classes than it has, begins with, the file, the run, its shapes)."""
    published, settings = open_published(str(file)), golden(f"sit/models/{file.stem}")[0]["kwargs"]
    ours = {"data.num_classes": settings["num_classes"] + more, "training.init": str(file)}
    config = with_settings(load("configs/base.py", [], published.source.translate(settings)), ours | flags)
    run = experiment(config)
    wanted = jax.eval_shape(run.init, jax.random.key(0))
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(run.mesh)), wanted)
    return beginning(run, config)(wanted), published, run, wanted


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_published_file(file, capsys):
    """For as many classes, all of it; for others, all but the embedding. What it does not say is said.

    One class more, where labels are dropped: the last of as many rows is the null class of the file.
    """
    start, published, run, wanted = of_file(file)
    theirs = published.params(run.model, run.image_shape, wanted, "ema")
    jax.tree.map(np.testing.assert_array_equal, start.params, theirs)
    assert start.facts | {"weights": "ema", "project": "sit", "drawn": []} == start.facts
    assert len(start.facts["sha256"]) == 64
    assert "does not say what its output means: taken for what this config says, velocity" in capsys.readouterr().out
    del theirs["embedding"]["label"]
    for more in (1, 6):
        start, *_ = of_file(file, more, **{"training.label_dropout": 0.1})
        assert start.facts["drawn"] == ["embedding/label/embedding"] and "label" not in start.params["embedding"]
        jax.tree.map(np.testing.assert_array_equal, start.params, theirs)
