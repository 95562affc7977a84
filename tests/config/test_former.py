"""What users of score_sde and score_flow type: understood, or answered in one line with the right name."""

import json
import re
from pathlib import Path

import pytest

from evaluation.modes.checking import check_components
from evaluation.modes.importing import sources
from main import EXIT_USER_ERROR, main
from score_flow.config.components import Component, find
from score_flow.config.former import FORMER, WITHOUT, answer
from score_flow.config.hints import arguments_of
from score_flow.config.loading import flatten, load
from score_flow.config.options import SCHEMA
from score_flow.errors import UserError

DIGITS = "configs/digits.py"
SOURCES = json.loads((Path(__file__).parents[1] / "golden" / "source_configs.json").read_text())
# Every key of their 52 configs with every value that it has there.
THEIRS = sorted(
    {
        f"{key}={value}"
        for project in ("score_sde", "score_flow")
        for config in SOURCES[project].values()
        for key, value in flatten(config).items()
    }
)


def typed(*flags: str):
    """The config with the flags put behind a recipe's, its plug-ins checked."""
    return check_components(load(DIGITS, [f"--config.{flag}" for flag in flags]))


def said(flag: str) -> str:
    """The one line that a flag is refused with."""
    with pytest.raises(UserError) as error:
        typed(flag)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("flag, write", [
    ("training.sde=vpsde", "--config.path.name=vp."),
    ("training.sde=subvpsde", "--config.path.name=subvp."),
    ("model.sigma_max=90", "--config.path.sigma_max=90."),
    ("model.nf=128", "--config.network.width=128."),
    ("model.name=ncsnv2_64", "--config.network.name=ncsnv2 --config.network.resolution=64."),
    ("model.num_scales=500", "--config.sampling.n_steps=500;"),
    ("model.num_scales=500", "--config.path.n=500 "),
    ("sampling.method=ode", "--config.sampling.name=ode."),
    ("sampling.method=pc", "--config.sampling.name=predictor_corrector."),
    ("data.dataset=CIFAR10", "--config.data.source.name=cifar10 "),
    ("data.dataset=FFHQ", "--config.data.source.name=folder "),
    ("data.dataset=NONE", "--config.data.source.name=NAME (docs"),
    ("eval.dataset=train", "--config.eval.bpd_dataset=train."),
    ("sampling.n_steps_each=2", "--config.sampling.n_corrector_steps=2."),
    ("sampling.noise_removal=False", "--config.sampling.denoise=False."),
    ("training.continuous=false", "--config.training.time_sampler.name=grid "),
    ("training.continuous", "--config.training.time_sampler.name=uniform."),
    ("training.sde=other", "for vesde --config.path.name=ve."),
    ("eval.dequantizer", "--config.eval.dequantizer=variational."),
    ("eval.bound", "--config.eval.jobs=('bound',)."),
    ("optim.amsgrad=True", "no counterpart: never read."),
])  # fmt: skip
def test_a_former_key_is_answered_with_what_to_write(flag, write):
    assert write in said(flag) and said(flag).startswith(f"config.{flag.split('=')[0]} is score_sde's")


def test_the_command_answers(capsys, tmp_path):
    """Before anything is made."""
    flags = [f"--config={DIGITS}", f"--workdir={tmp_path}/run", "--mode=train"]
    assert main([*flags, "--config.model.nf=128"]) == EXIT_USER_ERROR
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line == "error: config.model.nf is score_sde's: write --config.network.width=128."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("line, write", [
    ("config.model.nf = 128  # wide", "line 4: config.model.nf is score_sde's: write config.network.width=128."),
    ("config.training.sde = 'vesde'", "line 4: config.training.sde is score_sde's: write config.path.name=ve."),
    ("model.num_scales = 500", "line 4: config.model.num_scales is score_sde's: write config.sampling.n_steps=500;"),
    ("config.model.nff = 128", "line 4: unknown key 'nff'"),
    ("raise ValueError('model.nf = 3')", "line 4: ValueError"),
])  # fmt: skip
def test_a_recipe_is_answered_as_a_flag_is(line, write, tmp_path):
    """As score_sde's configs are written, too: model = config.model."""
    recipe = tmp_path / "mine.py"
    text = "from configs.base import get_config as base\ndef get_config():\n    config, model = base(), base().model\n"
    recipe.write_text(f"{text}    {line}\n    return config\n")
    with pytest.raises(UserError) as error:
        load(str(recipe), [])
    assert write in str(error.value) and "\n" not in str(error.value)


def test_braces_that_a_shell_expanded_are_answered(capsys, tmp_path):
    paths = [f"--config.data.source.path=/data/{{}}/train-{i:04}.tar".format("32x32") for i in range(128)]
    flags = [f"--config={DIGITS}", f"--workdir={tmp_path}/run", "--mode=train", "--config.data.source.name=archive"]
    assert main([*flags, *paths]) == EXIT_USER_ERROR
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("Put it in quotes: --config.data.source.path='/data/32x32/train-{0000..0127}.tar'.")
    assert "is given 128 times" in line and not (tmp_path / "run").exists()


def test_a_path_that_is_given_twice_is_the_last_one():
    first, second = (f"data.source.path=/data/{name}.tar" for name in ("a", "b1"))
    source = load(DIGITS, [f"--config.{flag}" for flag in ("data.source.name=archive", first, second)]).data.source
    assert source.arguments["path"] == "/data/b1.tar"


@pytest.mark.parametrize("flag", THEIRS)
def test_every_setting_of_their_configs_is_understood_or_answered(flag):
    """Misspelt keys of theirs are left to the nearest name."""
    key = flag.split("=")[0]
    section = key.rpartition(".")[0]
    if key in FORMER or key in WITHOUT:
        value = flag.partition("=")[2]
        assert answer(key, value) or flag == "eval.dequantizer=uniform", flag
    elif key not in ("training.loss", "training.continuouse"):
        assert key in SCHEMA or key in arguments("predictor_corrector", section), flag


def arguments(name: str, section: str) -> set[str]:
    """Keys of the arguments of a plug-in."""
    field = SCHEMA.get(section)
    if field is None or not isinstance(field.default, Component):
        return set()
    build = find(field.metadata["limits"].among, Component(name), section)
    return {f"{section}.{argument}" for argument in arguments_of(build)}


def test_what_is_answered_can_be_written():
    """Every key of an answer is a field, or an argument of a plug-in of its section."""
    known = {f"{key}.name" if isinstance(field.default, Component) else key for key, field in SCHEMA.items()}
    for key, field in SCHEMA.items():
        if isinstance(field.default, Component):
            for name in field.metadata["limits"].choices():
                known |= arguments(name, key)
    given = {key: found if isinstance(found, dict) else ("1",) for key, found in FORMER.items()}
    answers = [answer(key, value) or "" for key, values in given.items() for value in values]
    answers += [answer("data.dataset", name) for name in ("CIFAR10", "SVHN", "LSUN")]
    named = {key for text in answers for key in re.findall(r"--config\.([\w.]+)=", text)}
    assert len(named) > 30 and named <= known


def test_names_of_kernels():
    """Theirs stand for ours, their `none` for no kernel."""
    config = typed("sampling.name=predictor_corrector", "sampling.predictor=euler_maruyama", "sampling.corrector=none")
    assert config.sampling.arguments == {"predictor": "euler", "corrector": ""}
    config = typed("sampling.name=predictor_corrector", "sampling.predictor=none", "sampling.corrector=ald")
    assert config.sampling.arguments == {"predictor": "", "corrector": "annealed_langevin"}


def test_a_switch_without_a_value_is_on():
    assert load(DIGITS, ["--config.eval.enable_bpd=False", "--config.eval.enable_bpd"]).eval.enable_bpd is True
    sampling = typed("sampling.name=predictor_corrector", "sampling.probability_flow").sampling
    assert sampling.arguments == {"probability_flow": True}
    assert typed("training.fsdp").training.fsdp is True
    for key in ("training.n_iters", "sampling.rtol", "path.name", "eval.stats"):
        assert f"cannot read '--config.{key}'; write --config.section.key=value" in said(key)
    assert "Did you mean 'enable_bpd'" in said("eval.enable_bdp")


@pytest.mark.parametrize("flag, value", [
    ("training.n_iters=1e5", 100_000), ("data.image_shape=(3e1,30,3)", (30, 30, 3)), ("training.fsdp=8.0", 8),
    ("network.depth=2e0", 2), ("optim.lr=1", 1.0),
])  # fmt: skip
def test_a_number_is_an_integer_where_nothing_is_lost(flag, value):
    key = flag.split("=")[0]
    found = flatten(typed(flag).to_dict())[key]
    assert found == value and repr(found) == repr(value)


@pytest.mark.parametrize("flag", ["training.n_iters=1.5", "training.n_iters=1e500", "training.batch_size=1e300"])
def test_a_number_that_is_no_integer_is_refused(flag):
    assert f"config.{flag.split('=')[0]} must be of type int" in said(flag)


def test_help_of_a_config_prints_its_values(capsys):
    """With the overrides; of a plug-in the arguments of the one that is named."""
    with pytest.raises(SystemExit) as done:
        main(["--help", f"--config={DIGITS}", "--config.optim.lr=0.125", "--config.path.name=ve"])
    lines = capsys.readouterr().out.splitlines()
    config = load(DIGITS, ["--config.optim.lr=0.125", "--config.path.name=ve"])
    for key, value in flatten(config.to_dict()).items():
        assert any(line.startswith(f"  {key} ") and line.endswith(f"[{value!r}]") for line in lines), key
    assert done.value.code in (0, None) and any(line.startswith("  path.sigma_max ") for line in lines)
    with pytest.raises(SystemExit) as done:
        main(["--help", f"--config={DIGITS}", "--config.model.nf=3"])
    assert done.value.code == EXIT_USER_ERROR and "--config.network.width=3" in capsys.readouterr().err


def test_every_project_says_how_its_settings_are_written():
    assert all(source.written for source in sources().values())
