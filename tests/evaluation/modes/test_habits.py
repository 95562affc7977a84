"""Flags of SiT and improved-diffusion, typed to main.py: one line, whose commands do the same here."""

import re
import shlex

import pytest

from evaluation.modes import habits
from evaluation.modes.importing import sources
from main import EXIT_USER_ERROR, main
from score_flow.config.loading import load, with_settings

XL = "--config=configs/sit/xl_2_256.py"
CIFAR = (
    "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3 "
    "--diffusion_steps 4000 --noise_schedule cosine"
)
TYPED = [
    (
        "--model SiT-XL/2 --image-size 256 --path-type Linear --prediction velocity",
        f"{XL} --workdir=FOLDER --mode=train.",
    ),
    (f"{XL} --workdir=runs/x --model SiT-XL/2 --global-batch-size=64", f"{XL} --workdir=runs/x --mode=train "),
    ("--model SiT-B/4 --data-path PATH/imagenet --wandb", "--config=configs/sit/b_4_256.py --workdir=FOLDER "),
    ("SDE --cfg-scale 1.5 --num-sampling-steps 250 --ckpt PATH/x.pt", "--checkpoint=PATH/x.pt && python main.py"),
    ("ODE --model SiT-XL/2 --num-fid-samples 50000", "--config.sampling.name=ode --config.sampling.method=dopri5"),
    (
        "--image_size 64 --num_channels 128 --noise_schedule cosine --diffusion_steps 4000 --learn_sigma True",
        "configs/improved_diffusion/imagenet64_uncond_hybrid.py --workdir=FOLDER --mode=train --config.network.num_res",
    ),
    (f"{CIFAR} --lr 1e-4 --batch_size 128 --data_dir PATH/x", "hybrid.py --workdir=FOLDER --mode=train --config.data"),
    (
        f"--model_path PATH/m.pt {CIFAR} --timestep_respacing ddim50 --use_ddim True",
        "--mode=sample --config.sampling.name=ddim --config.sampling.n_steps=4000 --config.sampling.t_min=0.0 "
        "--config.sampling.respacing=ddim50.",
    ),
]  # fmt: skip


@pytest.mark.parametrize("typed, write", TYPED)
def test_a_line_of_theirs_is_answered(typed, write, capsys):
    """Before argparse asks for a mode; what is written can be read again, and no flag of theirs is in it."""
    assert main(shlex.split(typed)) == EXIT_USER_ERROR
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: these are flags of ") and write in line
    for command in re.findall(r"python main\.py (.*?)(?: && | \(|\.$)", line):
        words = shlex.split(command)
        assert all(habits.OURS.fullmatch(word) for word in words)
        given = dict(word.split("=", 1) for word in words)
        assert load(given.get("--config", "configs/sit/xl_2_256.py"), [w for w in words if w.startswith("--config.")])


@pytest.mark.parametrize("project, settings", [
    ("sit", {"model": "SiT-L/4", "path_type": "GVP", "prediction": "score", "image_size": 512}),
    ("improved_diffusion", {"image_size": 64, "class_cond": True, "use_kl": True, "noise_schedule": "cosine"}),
])  # fmt: skip
def test_what_is_written_is_the_translation(project, settings, capsys):
    """The recipe and the fields behind it make the config that an import of such settings has."""
    main([word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))])
    [line] = capsys.readouterr().err.strip().splitlines()
    words = shlex.split(line.partition("main.py ")[2].removesuffix("."))
    recipe = words[0].removeprefix("--config=")
    typed = load(recipe, [word for word in words if word.startswith("--config.")])
    wanted = with_settings(load(recipe, []), sources()[project].translate(settings))
    assert habits.entire(typed) == habits.entire(wanted) != habits.entire(load(recipe, []))


def test_a_wrong_value_of_theirs_is_named(capsys):
    assert main(["--model", "SiT-XXL/2"]) == EXIT_USER_ERROR
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "flags of SiT" in line and "'SiT-XXL/2'; allowed: SiT-B/2" in line


def test_lines_of_ours_and_of_nobody_are_left_alone(capsys):
    for words in (["--mode=train", "--config.path.name=vp"], ["--modle", "SiT"], ["--image-size", "64", "--so"], []):
        assert habits.answer(words) is None
    with pytest.raises(SystemExit):
        main(["--help"])
    flags = re.findall(r"^  (--\w+)", capsys.readouterr().out, re.MULTILINE)
    assert len(flags) > 6 and all(habits.OURS.fullmatch(flag) for flag in flags)
