"""What a result depends on is in its key; a job can look at nothing else; and no list of jobs stands anywhere."""

import dataclasses
import hashlib
import json
import re
import tomllib

import numpy as np
import pytest

import score_flow
from evaluation.drawing import described
from evaluation.fold import plain
from evaluation.jobs import keys
from evaluation.jobs.base import BY_CONTENT, NO_FIGURES, Job, asked, find, refuse_unfit
from sampling.base import Stream
from score_flow.build import experiment
from score_flow.config import hints, registries
from score_flow.config.components import Component
from score_flow.config.components import find as find_build
from score_flow.config.loading import flatten, load
from score_flow.config.options import EvalOptions
from score_flow.config.registries import ROOT
from score_flow.errors import UserError
from score_flow.pretrained import autoencoder_kl
from tests.launch import TINY

JOBS = registries.JOBS.names()
WEIGHTS = {"weights": "EMA 0.9", "checkpoint": "ab"}
FLAGS = [flag for flag in TINY if not flag.startswith("--config=")]


def key(job, *flags, weights=WEIGHTS):
    config = load("configs/digits.py", [*FLAGS, *(f"--config.{flag}" for flag in flags)])
    run = experiment(config)
    facts = lambda split: keys.facts_of(run, split)  # noqa: E731
    images = keys.images_of(find(job), config.eval.bpd_dataset, latent=run.latent, facts=facts)
    return plain(keys.key_of(find(job), keys.settings_of(run, config, False)) | weights | images)


def changed(job, *flags):
    """The names of what flags change in a key."""
    one, other = flatten(key(job)), flatten(key(job, *flags))
    return {name for name in one | other if one.get(name) != other.get(name)}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_sees_what_it_declares_and_its_key_holds_it(job):
    """Every field of config.eval is in the key, or else the job cannot read it; the batch size changes nothing."""
    view, held = keys.seen_by(find(job), EvalOptions()), key(job)["eval"]
    assert isinstance(view, EvalOptions)
    for field in dataclasses.fields(EvalOptions):
        if field.name in held or field.name in ("batch_size", *BY_CONTENT, *NO_FIGURES):
            continue
        with pytest.raises(AssertionError, match=field.name):
            getattr(view, field.name)


@pytest.mark.parametrize("job", JOBS)
def test_what_changes_speed_alone_is_not_in_a_key(job):
    flags = (
        "eval.batch_size=7", "eval.enable_loss=False", "eval.jobs=('vlb',)", "training.n_iters=3", "training.fsdp=True",
        "training.batch_size=8", "optim.lr=1.0",
    )  # fmt: skip
    assert not changed(job, *flags)


@pytest.mark.parametrize(
    ("job", "flag", "name"),
    [
        ("loss", "training.weighting=data", "training.weighting"),
        ("loss", "seed=3", "seed"),
        ("loss", "data.uniform_dequantization=False", "data.uniform_dequantization"),
        ("samples", "sampling.rtol=1e-3", "sampling.rtol"),
        ("samples", "guidance.temperature=0.5", "guidance.temperature"),
        ("trajectory", "guidance.temperature=0.5", "guidance.temperature"),
        ("likelihood", "eval.solver.method=dopri5", "eval.solver.method"),
        ("bound", "eval.bound_times=3", "eval.bound_times"),
        ("fid", "eval.extractor.name=inception", "eval.extractor.name"),
    ],
)
def test_what_changes_results_is(job, flag, name):
    assert changed(job, flag) == {name}


def test_defaults_that_are_spelt_out_change_nothing():
    """The same sampler, whether its arguments are given or not."""
    assert not changed("samples", "sampling.n_steps=0", "sampling.control=pi")


def test_other_images_are_other_keys(tmp_path):
    """Equal settings, another file under the same name: the checksum differs, and the number where that does."""
    file, found = tmp_path / "d.npz", []
    flags = ("data.source.name=arrays", f"data.source.path={file}")
    for n, level in ((40, 1), (40, 2), (50, 1)):
        np.savez(file, image=np.full((n, 8, 8, 1), level, np.uint8))
        found.append(flatten(key("loss", *flags)))
    names = [{name for name in found[0] if found[0][name] != other[name]} for other in found]
    assert names == [set(), {"test images.checksum"}, {"test images.checksum", "test images.n"}]


def test_files_count_by_their_content_not_by_their_name(tmp_path):
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    one.write_bytes(b"a"), other.write_bytes(b"a")
    assert keys.contents(str(one)) == keys.contents(str(other)) != keys.contents(str(tmp_path / "none.npz"))
    other.write_bytes(b"b")
    assert keys.contents(str(one)) != keys.contents(str(other))
    section = Component("inpaint", {"input": str(one), "method": "replacement"})
    assert keys.component(section) == {"name": "inpaint", "input": keys.contents(str(one)), "method": "replacement"}


def test_an_autoencoder_counts_by_weights_and_settings(tmp_path):
    """Stable Diffusion's settings, given or not, count for nothing beside its weights: older keys stay as they are."""
    (tmp_path / autoencoder_kl.WEIGHTS).write_bytes(b"a")
    of = []
    for settings in (None, {}, {"scaling_factor": 0.18215}, {"scaling_factor": 0.13}, {"centered": False}):
        if settings is not None:
            (tmp_path / autoencoder_kl.CONFIG).write_text(json.dumps(settings))
        of.append(keys.contents(str(tmp_path)))
    assert of[0] == of[1] == of[2] == f"sha256 {hashlib.sha256(b'a').hexdigest()[:16]}"
    assert len({*of}) == 3 and all(found.startswith(of[0]) for found in of)


def test_no_list_of_jobs():
    """The loop over jobs and the report know none by name, nor do what makes keys and what compares with papers."""
    for file in ("run.py", "report/one_run.py", "modes/reproduce.py", "jobs/keys.py"):
        strings = set(re.findall(r"\"(\w+)\"|'(\w+)'", (ROOT / "evaluation" / file).read_text()))
        assert not {word for pair in strings for word in pair} & set(JOBS), file


def test_no_job_imports_another():
    """What jobs share is no job: base, rounds, keys, bits."""
    for name in JOBS:
        text = (ROOT / "evaluation" / "jobs" / f"{name}.py").read_text()
        imported = re.findall(r"evaluation\.jobs import (.*)|evaluation\.jobs\.(\w+)", text)
        assert imported and not {word for pair in imported for word in re.findall(r"\w+", "".join(pair))} & set(JOBS)


def test_streams_of_keys_stay():
    """Their numbers are in every sample and likelihood that was ever computed."""
    names = ["OWN", "LIKELIHOOD", "LOSS", "SAMPLES", "SNAPSHOT", "VLB", "ACCURACY", "BOUND", "ENCODING", "LABELS"]
    assert {stream.name: int(stream) for stream in Stream} == {name: number for number, name in enumerate(names)}


def test_every_job_is_a_value():
    for name in JOBS:
        job = find(name)
        assert (isinstance(job, Job) and job.build.__doc__ and job.needs and "denoiser" in job.needs) or name in (
            "loss", "accuracy", "baselines", "images"
        )  # fmt: skip


def test_a_job_that_does_not_fit_is_refused_with_those_that_do():
    run = experiment(load("configs/digits.py", FLAGS))
    with pytest.raises(UserError, match="the job accuracy is a classifier's"):
        refuse_unfit(run, {"accuracy": find("accuracy")})
    latent = dataclasses.replace(run, latent=True, autoencoder="x")
    object.__setattr__(latent, "pixel_shape", (8, 8, 1))
    allowed = "allowed: fid, images, loss, samples, sweep, trajectory"
    with pytest.raises(UserError, match=f"the job likelihood needs pixels.*; {allowed}"):
        refuse_unfit(latent, {"likelihood": find("likelihood")})
    with pytest.raises(UserError, match="'likelihod'.*Did you mean 'likelihood'"):
        find("likelihod")


def test_jobs_of_the_options():
    assert list(asked(EvalOptions(jobs=("vlb",)))) == ["loss", "samples", "trajectory", "likelihood", "vlb"]
    assert list(asked(EvalOptions(jobs=("vlb",), only=("fid", "samples")))) == ["samples", "fid"]
    assert list(asked(EvalOptions(only=("fid",)), "sample")) == ["samples"]
    assert list(asked(EvalOptions(), "sample")) == list(asked(EvalOptions(), "control")) == ["samples"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "ode tsit5 rtol 1e-05 atol 1e-05 t_min=1e-05 t_max=1"),
        ({"method": "euler", "n_steps": 10, "rtol": 1e-3}, "ode euler 10 uniform steps t_min=1e-05 t_max=1"),
        ({"method": "heun", "grid": (1.0, 0.5, 0.0)}, "ode heun 2 steps at given times"),
    ],
)
def test_a_sampler_is_named_by_what_it_does(arguments, said):
    """Fixed steps have no tolerances, adaptive ones no number."""
    assert described(Component("ode", arguments)) == said


@pytest.mark.parametrize("name", [name for name in registries.SAMPLERS.names() if name != "ode"])
def test_every_argument_of_a_sampler_is_named(name):
    """Defaults too, and those of the kernels that it is made of."""
    said, names = described(Component(name)), hints.parameters_of(find_build(registries.SAMPLERS, Component(name), ""))
    assert said.startswith(name) and all(f" {argument}=" in said for argument in names)


def test_the_version_is_one():
    """And results of a version since which no figure changed are still good."""
    numbers = [tuple(map(int, version.split("."))) for version in (score_flow.FIGURES, score_flow.__version__)]
    assert numbers == sorted(numbers)
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == score_flow.__version__


def test_a_loss_depends_on_nothing_that_only_training_is_told():
    """How a batch is cut, what tells a service, what becomes of bad steps: a result is there under any of them."""
    others = ("microbatches=2", "non_finite=skip", "logger.name=none", "n_jitted_steps=5", "accept=('batch_size',)")

    def of_training(*flags):
        config = load("configs/digits.py", [*FLAGS, *(f"--config.training.{flag}" for flag in flags)])
        return keys.settings_of(experiment(config), config, False)["training"]

    assert of_training(*others) == of_training() and "logger" not in of_training()
    assert of_training("smallest_time=1e-3") != of_training()
