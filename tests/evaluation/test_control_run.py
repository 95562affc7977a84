"""--mode=control on a trained run, and a super-resolution model that refines the samples of a base model."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from evaluation.context import build_guide, load_base
from evaluation.report.pictures import beside
from main import EXIT_USER_ERROR, main
from sampling.base import example_keys
from sampling.heun import build as heun
from score_flow.build import experiment
from score_flow.config.loading import load
from score_flow.data.conditioning import Conditioning
from score_flow.data.digits import build as digits
from score_flow.errors import UserError
from score_flow.model import Model
from score_flow.paths.linear import Linear
from score_flow.process.prediction import velocity
from tests.launch import TINY

STEPS = ["--config.sampling.name=heun", "--config.sampling.n_steps=3", "--config.sampling.t_max=0.9"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir after a few steps, with an image and a mask beside it."""
    folder = tmp_path_factory.mktemp("control")
    image = digits("test").read(np.arange(1))["image"][0, ..., 0]
    Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(folder / "image.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    assert main([*TINY, f"--workdir={folder / 'run'}", "--mode=train", "--config.training.n_iters=2"]) == 0
    return folder


def control(folder, *flags) -> int:
    files = [f"--config.control.input={folder / 'image.png'}", f"--config.control.mask={folder / 'mask.png'}"]
    return main([f"--workdir={folder / 'run'}", "--mode=control", "--config.control.name=inpaint", *files, *flags])


def test_inpainting_from_the_command_line(trained, capsys):
    """Eight samples with the known half as given, a picture of all, and the folder's settings checked."""
    sampler = ["--config.sampling.name=ddim", "--config.sampling.n_steps=3", "--config.sampling.t_max=0.9"]
    assert control(trained, "--config.control.method=replacement") == EXIT_USER_ERROR  # the sampler is the flow,
    assert "pseudo_inverse" in capsys.readouterr().err  # and nothing was made, so that the command may be mended
    assert control(trained, "--config.control.method=replacement", *sampler) == 0
    folder = trained / "run" / "control" / "2" / "samples"
    with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
        images = arrays["image"]
    given = digits("test").read(np.arange(1))["image"]
    assert images.shape == (8, 8, 8, 1)
    np.testing.assert_array_equal(images[:, :, :4], np.broadcast_to(given[:, :, :4], (8, 8, 4, 1)))
    assert (images[0] != images[1]).any()
    with Image.open(folder / "control.png") as picture:
        assert picture.size == ((10 * 9 - 1) * 4, 8 * 4)  # input, what is known, eight samples; enlarged by 4
    # Another image in the same file is another setting.
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(trained / "image.png")
    capsys.readouterr()
    assert control(trained, "--config.control.method=replacement", *sampler) == EXIT_USER_ERROR
    assert "control.input is 'sha256 " in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--config.control.name=inpant"], "'inpaint'"),
        (["--config.control.maks=x.png"], "'mask'"),
        (["--config.control.mask=none.png"], "no such file"),
        (["--config.control.name=colourise"], "3 channels"),
    ],
)
def test_mistakes_are_one_line(trained, capsys, flags, expected):
    name = flags[0].partition("control.name=")[2] or "inpaint"
    given = [f"--config.control.input={trained / 'image.png'}"]
    given += [f"--config.control.mask={trained / 'mask.png'}"] if name == "inpaint" and "mask=" not in flags[0] else []
    names = [] if "control.name" in flags[0] else ["--config.control.name=inpaint"]
    run = [f"--workdir={trained / 'run'}", "--mode=control", "--eval_folder=mistakes", *names, *given, *flags]
    assert main(run) == EXIT_USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and expected in lines[0], lines


def test_needed_fields_are_named(trained, capsys):
    assert main([f"--workdir={trained / 'run'}", "--mode=control"]) == EXIT_USER_ERROR
    assert "--config.control.input=" in capsys.readouterr().err


def test_rows_of_the_picture():
    """Sample i belongs to input i mod n; missing ones are black."""
    shown, samples = np.full((2, 1, 1, 1), 100, np.uint8), np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) + 1
    images, columns = beside([shown], samples)
    np.testing.assert_array_equal(images.reshape(2, columns), [[100, 1, 3, 5], [100, 2, 4, 0]])


# Two stages.


class Upsampler(nn.Module):
    """Its velocity leads to the low-resolution image, enlarged: E[x0 | x_t] is that image, whatever x_t."""

    num_classes: int = 0

    @nn.compact
    def __call__(self, x, time, condition=None, *, deterministic=True):
        scale = self.param("scale", nn.initializers.ones, ())
        x0 = jnp.repeat(jnp.repeat(condition["low_res"], 2, axis=1), 2, axis=2)
        return scale * (x - x0) / time[:, None, None, None]


def test_a_model_refines_the_samples_of_another(tmp_path):
    """Through the API: uint8 samples of 4 x 4, in turn, become the condition of a model of 8 x 8, labels with them."""
    image = np.random.default_rng(0).integers(0, 17, (3, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "samples.npz", image=image, label=np.array([7, 1, 4]))
    config = load("configs/digits.py", [f"--config.eval.low_res={tmp_path / 'samples.npz'}"])
    model = Model(Upsampler(), Linear(), velocity)
    preconditioning = dataclasses.replace(model.preconditioning, time_scale=1.0)
    run = dataclasses.replace(
        experiment(config),
        model=dataclasses.replace(model, preconditioning=preconditioning),
        conditioning=Conditioning(num_classes=10, low_res=4),
    )
    params, guide = run.init(jax.random.key(0)), build_guide(run, config)
    sampler = heun(t_max=0.9, t_min=1e-3, n_steps=4)

    @jax.jit
    def draw(guide, indices):
        condition = guide.in_turn(indices)
        denoiser = guide(run.model.bind(params, condition))
        return sampler(example_keys(0, indices), denoiser, run.image_shape).x, condition["label"]

    x, label = draw(guide, jnp.arange(8))
    np.testing.assert_array_equal(label, [7, 1, 4, 7, 1, 4, 7, 1])
    expected = np.repeat(np.repeat(image[np.arange(8) % 3] / 8 - 1.0, 2, axis=1), 2, axis=2)
    # x_{t_min} = (1 - t_min) x0 + t_min noise, and noise is below 5.
    np.testing.assert_allclose(x, expected, rtol=0, atol=6e-3)


def test_base_samples_that_do_not_fit(tmp_path):
    config = load("configs/digits.py", [])
    run = experiment(config)
    refining = dataclasses.replace(run, conditioning=Conditioning(num_classes=5, low_res=4))
    np.savez(tmp_path / "large.npz", image=np.zeros((3, 8, 8, 1), np.uint8))
    np.savez(tmp_path / "labels.npz", image=np.zeros((3, 4, 4, 1), np.uint8), label=np.array([0, 5, 0]))
    for which, file, expected in (
        (run, "large.npz", "low_res is 0"),
        (refining, "none.npz", "no such file"),
        (refining, "large.npz", r"allowed: \(4, 4, 1\)"),
        (refining, "labels.npz", "labels up to 5"),
    ):
        with pytest.raises(UserError, match=expected):
            load_base(which, str(tmp_path / file))
    with pytest.raises(UserError, match=r"config.eval.low_res"):
        refining.conditioning.in_turn(jnp.arange(2))


@pytest.mark.slow
def test_two_stages_from_the_command_line(tmp_path):
    """Digits of 4 x 4, then a model of 8 x 8 that is told them."""
    image = digits("train").read(np.arange(64))
    small = image["image"].reshape(64, 4, 2, 4, 2, 1).mean((2, 4)).round().astype(np.uint8)
    np.savez(tmp_path / "small.npz", image=small)
    base = [*TINY, "--config.training.n_iters=2", f"--workdir={tmp_path / 'base'}", "--config.eval.num_samples=3"]
    data = ["--config.data.source.name=arrays", f"--config.data.source.path={tmp_path / 'small.npz'}"]
    data += ["--config.data.source.levels=17"]
    assert main([*base, *data, "--mode=train"]) == 0
    assert main([*base, *data, *STEPS, "--mode=sample"]) == 0
    samples = tmp_path / "base" / "samples" / "2" / "samples" / "samples.npz"
    network = [
        "--config.network.name=adm",
        "--config.network.width=32",
        "--config.network.num_res_blocks=1",
        "--config.network.channel_mult=(1,)",
    ]
    tiny = [flag for flag in TINY if ".network." not in flag]
    refiner = [*tiny, *network, "--config.training.n_iters=1", f"--workdir={tmp_path / 'refiner'}"]
    refiner += ["--config.model.low_res=4", "--config.eval.num_samples=5"]
    assert main([*refiner, "--mode=train"]) == 0
    assert main([*refiner, *STEPS, "--mode=sample"]) == EXIT_USER_ERROR
    assert main([*refiner, *STEPS, "--mode=sample", f"--config.eval.low_res={samples}"]) == 0
    with np.load(tmp_path / "refiner" / "samples" / "1" / "samples" / "samples.npz", allow_pickle=False) as arrays:
        assert arrays["image"].shape == (5, 8, 8, 1)
        low_res = arrays["low_res"]
    with np.load(samples, allow_pickle=False) as arrays:
        np.testing.assert_allclose(low_res, arrays["image"][np.arange(5) % 3] / 8 - 1.0, atol=1e-6)
