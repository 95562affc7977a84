"""How a run opens its data: what it declares, remembers and refuses early, and which data it goes on with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data.base import facts
from score_flow.errors import UserError
from score_flow.training.accepting import going_on
from score_flow.training.saver import remembered

N = 20
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 1), np.uint8)
CONDITIONAL = "--config.model.class_conditional=True"


def save(file, **arrays):
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **({"image": IMAGES} | arrays))
    return file


def config_of(path, *flags):
    source = ["--config.data.source.name=arrays", f"--config.data.source.path={path}"]
    network = ["--config.network.name=mlp", "--config.network.width=8", "--config.network.depth=1"]
    return load("configs/digits.py", [*source, *network, *flags])


def refusal(function, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- what a run remembers of its data


def test_a_run_that_remembers_its_data_needs_none_to_be_built(tmp_path):
    """Sampling needs the shape of images, the levels and the number of classes; the states know them."""
    file = save(tmp_path / "a.npz", label=np.arange(N) % 3)
    config = config_of(file, CONDITIONAL)
    known = json.loads(json.dumps(experiment(config).data_facts))
    file.unlink()
    run = experiment(config, known)
    assert (run.image_shape, run.scaling.levels, run.conditioning.num_classes) == ((8, 8, 1), 256, 3)
    assert "no such file" in refusal(lambda: run.train_source)
    assert "no such file" in refusal(experiment, config)


def test_other_images_than_remembered_are_refused_when_they_are_opened(tmp_path):
    file = save(tmp_path / "a.npz")
    known = experiment(config_of(file)).data_facts
    save(file, image=IMAGES[:, :6])
    message = refusal(lambda: experiment(config_of(file), known).train_source)
    assert "(6, 8, 1)" in message and "(8, 8, 1)" in message


def test_an_older_run_trains_on_all_images_for_ever(tmp_path):
    """Its states know no facts: {}. The states that follow remember that nothing is held out."""
    config = config_of(save(tmp_path / "a.npz"))
    assert len(experiment(config).train_source) == N - 2
    old = experiment(config, {})
    assert len(old.train_source) == len(old.test_source) == N
    assert old.test_source.name == "a.npz (training images)"
    again = experiment(config, old.data_facts)
    assert len(again.train_source) == N and again.data_facts == old.data_facts
    typed = experiment(config_of(tmp_path / "a.npz", "--config.data.source.test_share=0.5"), old.data_facts)
    assert len(typed.train_source) == N // 2  # what is typed is done, and refused where it does not fit (below)


def test_the_newest_state_remembers(tmp_path):
    """Of both folders; a state of before facts were kept knows none, a damaged one is passed over."""

    def save_state(folder, step, text):
        file = tmp_path / folder / str(step) / "meta/metadata"
        file.parent.mkdir(parents=True)
        file.write_text(text)

    assert remembered(tmp_path) is None
    save_state("checkpoints", 5, '{"config": {}}')
    assert remembered(tmp_path) == {}
    save_state("checkpoints-meta", 10, '{"data": {"n": 3}}')
    save_state("checkpoints", 9, '{"data": {"n": 2}}')
    save_state("checkpoints", 11, "[1")
    save_state("checkpoints", 12, "[1]")
    save_state("checkpoints", "13.tmp", '{"data": {"n": 4}}')
    assert remembered(tmp_path) == {"n": 3}
    shutil.rmtree(tmp_path / "checkpoints-meta")
    assert remembered(tmp_path) == {"n": 2}


# ---- refused at the start


ODD_LABELS = {
    "too_few": np.arange(N - 1),
    "negative": np.full(N, -1),
    "one_hot": np.eye(N),
    "names": np.array(["cat"] * N),
}


@pytest.mark.parametrize("case", ODD_LABELS)
def test_unused_labels_stop_nobody(case, tmp_path):
    file = save(tmp_path / "a.npz", label=ODD_LABELS[case])
    assert len(experiment(config_of(file)).test_source) == 2
    message = refusal(experiment, config_of(file, CONDITIONAL))
    assert "class_conditional is True, but the data have no labels" in message and "a.npz" in message
    assert "labels" in message.split("(", 1)[1]  # and why


def test_labels_beyond_the_declared_classes_are_refused(tmp_path):
    file = save(tmp_path / "a.npz", label=np.arange(N) % 10)
    declared = ("--config.data.image_shape=(8,8,1)", "--config.data.levels=256", "--config.data.num_classes=5")
    assert len(experiment(config_of(file, *declared)).train_source) == N - 2
    message = refusal(lambda: experiment(config_of(file, *declared, CONDITIONAL)).train_source)
    assert "reach 9 (10 classes)" in message and "config.data declares 5 classes" in message


@pytest.mark.parametrize("case", ["size", "channels", "labels"])
def test_splits_that_differ_are_refused(case, tmp_path):
    save(tmp_path / "train.npz", label=np.arange(N) % 3)
    other = {"size": IMAGES[:, :, :6], "channels": np.repeat(IMAGES, 3, -1), "labels": IMAGES}[case]
    save(tmp_path / "val.npz", image=other)
    run = experiment(config_of(tmp_path, CONDITIONAL))
    assert len(run.train_source) == N
    message = refusal(lambda: run.test_source)
    assert "val.npz" in message and ("no labels" in message if case == "labels" else "train.npz" in message)
    if case == "labels":
        assert len(experiment(config_of(tmp_path)).test_source) == N


# ---- whose data a state was trained on


def go_on(meta, config):
    facts = experiment(config, meta.get("data", {})).data_facts
    assert going_on(meta, config, facts, where=Path("runs/r")) == []


def state_of(config, known=True):
    """The meta of a state that a run of this config saves; of an older one, without facts."""
    meta = {"config": json.loads(config.to_json())}
    return json.loads(json.dumps(meta | ({"data": experiment(config).data_facts} if known else {})))


def test_content_decides_and_not_the_path(tmp_path, monkeypatch):
    file = save(tmp_path / "a.npz")
    meta = state_of(config_of(file))
    go_on(meta, config_of(f"{tmp_path}/../{tmp_path.name}/a.npz"))
    monkeypatch.chdir(tmp_path)
    go_on(meta, config_of("a.npz"))
    moved = file.rename(tmp_path / "b.npz")
    go_on(meta, config_of(moved))
    assert "number of images" in refusal(go_on, meta, config_of(moved, "--config.data.source.test_share=0.5"))
    save(file, image=IMAGES[::-1])
    assert "first images" in refusal(go_on, meta, config_of(file))
    assert "network.width" in refusal(go_on, meta, config_of(moved, "--config.network.width=16"))


def test_of_an_older_state_the_path_decides_in_any_spelling(tmp_path, monkeypatch):
    file = save(tmp_path / "a.npz")
    meta = state_of(config_of(file), known=False)
    monkeypatch.chdir(tmp_path)
    for path in (file, "a.npz", "./a.npz"):
        go_on(meta, config_of(path))
        go_on(meta, config_of(path, "--config.data.source.test_share=0"))
    save(tmp_path / "b.npz")
    assert "data.source.path" in refusal(go_on, meta, config_of(tmp_path / "b.npz"))
    held_out = config_of(file, "--config.data.source.test_share=0.1")
    assert "give --config.data.source.test_share=0" in refusal(go_on, meta, held_out)


def test_facts_name_the_use_of_labels(tmp_path):
    file = save(tmp_path / "a.npz", label=np.arange(N) % 3)
    run = experiment(config_of(file))
    assert run.data_facts == facts(run.train_source) | {"labelled": False}
    conditional = experiment(config_of(file, CONDITIONAL)).data_facts
    assert conditional["labelled"] and conditional["counts"] == np.bincount(run.train_source.label).tolist()
