"""The library: names that load what they name whatever was imported before, and a run that does as the commands do."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import score_flow as sf
from main import main
from score_flow.config import registries
from score_flow.config.registries import ROOT
from tests.evaluation.modes.test_importing import CASES
from tests.launch import environment

PACKAGES = {"paths": registries.PATHS, "networks": registries.NETWORKS, "samplers": registries.SAMPLERS,
            "losses": registries.LOSSES, "data": registries.SOURCES}  # fmt: skip
RUN = [
    "--config=configs/digits_conditional.py",
    "--config.network.name=mlp",
    "--config.network.width=16",
    "--config.network.depth=1",
    "--config.training.batch_size=16",
    "--config.training.n_iters=2",
    "--config.optim.lr=0.03",
    "--config.optim.warmup=0",
    "--config.model.ema_rate=(0.1,)",
    "--config.training.snapshot_sampling=False",
    "--config.sampling.name=ddim",
    "--config.sampling.n_steps=3",
    "--config.eval.enable_loss=False",
    "--config.eval.enable_sampling=False",
    "--config.eval.enable_bpd=True",
    "--config.eval.jobs=()",
    "--config.eval.solver.n_steps=4",
    "--config.eval.solver.method=heun",
    "--config.eval.batch_size=40",
    "--config.eval.num_samples=40",
]


def python(code: str) -> str:
    """What a fresh process prints."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    ).stdout


# ---- names


def test_nothing_heavy_is_loaded_before_it_is_asked_for():
    loaded = "; print([m for m in ('jax', 'flax', 'numpy', 'score_flow.types') if m in sys.modules])"
    assert python(f"import sys, score_flow{loaded}").strip() == "[]"
    assert python(f"import sys, score_flow as sf; sf.paths.vp(){loaded}").strip() != "[]"


def test_help_waits_for_no_library_that_it_does_not_need():
    heavy = ("jax", "flax", "sklearn", "scipy", "matplotlib", "orbax", "grain", "tensorflow", "tensorboardX")
    code = "import atexit, main, sys; atexit.register(lambda: print(*sys.modules)); main.main(['--help'])"
    loaded = python(code).splitlines()[-1].split()
    assert "score_flow.config.signatures" in loaded and not {*heavy} & {*loaded}


def test_no_import_looks_for_devices():
    """Processes join each other before that, whatever was imported."""
    files = [file for room in ("score_flow", "sampling", "evaluation") for file in (ROOT / room).rglob("*.py")]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if file.name != "__init__.py"]
    code = f"import importlib; [importlib.import_module(name) for name in {names}]"
    looked = "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    assert python(f"{code}; {looked}").strip() == "False"


@pytest.mark.slow
def test_plug_ins_are_called_whatever_was_imported_before():
    """Each order in modules that are loaded anew."""
    code = """
import sys
def order(text):
    for name in [name for name in sys.modules if name.partition(".")[0] in ("score_flow", "sampling", "evaluation")]:
        del sys.modules[name]
    names = {}
    exec(text, names)
    sf = sys.modules["score_flow"]
    assert type(sf.paths.gvp()).__name__ == "GVP" and sf.networks.mlp(width=32).width == 32
    assert callable(sf.samplers.heun(n_steps=18)) and sf.prediction.velocity.gain and sf.paths.base.Path
    assert sf.paths.gvp.GVP is type(sf.paths.gvp()) and sys.modules["score_flow.paths.gvp"] is sf.paths.gvp
    return names
order("import score_flow as sf")
order("import score_flow.paths.gvp, score_flow.networks.mlp, sampling.heun, score_flow.process.prediction")
order("import score_flow.paths.base; import score_flow as sf; sf.paths.base.Path; sf.paths.ve")
order("import sampling, score_flow; sampling.heun; score_flow.paths.gvp; import score_flow.paths.gvp")
names = order("import score_flow.paths.gvp as g; from score_flow.paths import ve; from sampling import sde, heun as h")
assert names["g"].GVP and names["ve"].VE and names["sde"].build and names["h"].build
order("from score_flow import *; Model, open, paths.gvp")
order("import score_flow.model, evaluation.run, main")
print("done")
"""
    assert python(code) == "done\n"


def test_every_name_of_the_face_is_there_and_known_to_editors():
    stub = ast.parse((ROOT / "score_flow/__init__.pyi").read_text()).body
    modules = [node for node in stub if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {alias.asname for node in modules for alias in node.names} == {*sf.__all__} - {"__version__"}
    [listed] = [ast.literal_eval(node.value) for node in stub if isinstance(node, ast.Assign)]
    assert sorted(listed) == sorted(sf.__all__)
    assert all(getattr(sf, name) is not None for name in sf.__all__) and set(sf.__all__) <= set(dir(sf))
    with pytest.raises(AttributeError, match="nope"):
        _ = sf.nope


@pytest.mark.parametrize("name", PACKAGES)
def test_what_editors_know_of_plug_ins_is_what_they_are(name):
    package = getattr(sf, name)
    tree = ast.parse(Path(package.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    known = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    for plug_in, (module, exported) in known.items():
        assert getattr(importlib.import_module(module), exported) is getattr(package, plug_in).build
    assert set(PACKAGES[name].names()) <= set(dir(package))
    with pytest.raises(AttributeError, match=rf"Did you mean '{min(known)}'\?"):
        getattr(package, f"{min(known)}e")


def test_kernels_are_files_of_their_own():
    assert {"euler", "langevin"} <= set(dir(sf.kernels)) and sf.kernels.euler.predictor()
    with pytest.raises(AttributeError, match=r"Did you mean 'euler'\?"):
        _ = sf.kernels.eulre


def test_a_model_of_parts():
    model = sf.Model(sf.networks.mlp(width=8, depth=1), sf.paths.gvp(), sf.prediction.velocity)
    params = model.init(sf.keys(0, 1)[0], (1, 4, 4, 1))
    samples = sf.samplers.ddim(n_steps=2)(sf.keys(0, 3), model.bind(params), (4, 4, 1))
    assert samples.x.shape == (3, 4, 4, 1) and jnp.isfinite(samples.x).all()


# ---- a run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("face") / "run"
    for mode in ("train", "eval", "sample"):
        assert main([*RUN, f"--workdir={folder}", f"--mode={mode}"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(workdir):
    return sf.open(workdir)


@pytest.fixture(scope="module")
def digits(run):
    return run.test_data.read(np.arange(len(run.test_data)))


def test_opening_writes_nothing_and_says_nothing(workdir, capsys):
    before = {file: file.stat().st_mtime_ns for file in workdir.rglob("*")}
    run = sf.open(workdir, weights="raw")
    assert (run.step, run.weights, run.image_shape, run.workdir) == (2, "raw", (8, 8, 1), workdir)
    assert sf.open(workdir, step=2, weights=0).weights == sf.open(workdir).weights == "EMA 0.1"
    assert sf.open(workdir, guidance={"scale": 3}, eval={"solver": {"rtol": 0.1}}).config.eval.solver.rtol == 0.1
    assert {file: file.stat().st_mtime_ns for file in workdir.rglob("*")} == before
    assert capsys.readouterr().out == ""


def test_samples_are_those_of_the_command(run, workdir):
    found = np.load(workdir / "samples/2/samples/samples.npz")
    images = run.sample(40)
    assert images.dtype == np.uint8 and np.array_equal(images, found["image"])
    assert np.array_equal(found["label"], np.arange(40) % 10)
    # In other batches they are the same but where rounding meets the edge of a level.
    assert (run.sample(5, batch_size=3).astype(int) - images[:5]).max() <= 1
    assert not np.array_equal(run.sample(40, seed=1), images)


def test_labels_and_guidance_are_those_that_are_given(run):
    in_turn = run.sample(40)
    sevens = run.sample(40, labels=[7])
    assert np.array_equal(sevens[7::10], in_turn[7::10]) and not np.array_equal(sevens, in_turn)
    assert np.array_equal(run.sample(40, labels=np.arange(10), guidance=1.5), in_turn)
    assert not np.array_equal(run.sample(40, guidance={"scale": 6.0, "interval": [0.0, 1.0]}), in_turn)
    other = run.sample(8, sampler=sf.samplers.heun(n_steps=2), labels=3)
    assert other.shape == (8, 8, 8, 1)


def test_bits_per_dim_are_those_of_the_job(run, workdir, digits):
    bits = run.bits_per_dim(digits["image"], labels=digits["label"])
    assert bits.dtype == np.float64 and bits.shape == (297,)
    assert np.array_equal(bits, np.load(workdir / "eval/2/likelihood/bits.npz")["bits"][0])
    few = run.bits_per_dim(digits["image"][40:80], labels=digits["label"][40:80], indices=np.arange(40, 80))
    assert np.array_equal(few, bits[40:80])


@pytest.mark.slow
def test_decoding_undoes_encoding_and_interpolation_is_that_of_the_job(run, workdir, digits):
    images, label = digits["image"][:8], digits["label"][:8]
    z = run.encode(images, labels=label)
    assert np.array_equal(run.decode(z, labels=label), images)
    assert not np.array_equal(run.encode(images, labels=label, solver={"n_steps": 3}), z)
    command = [*RUN, f"--workdir={workdir}", "--mode=eval", "--eval_folder=between", "--config.eval.enable_bpd=False"]
    assert main([*command, "--config.eval.jobs=('interpolation',)"]) == 0
    found = np.load(workdir / "between/2/interpolation/interpolation.npz")
    labels = tuple(digits["label"][found["index"]].T)
    between = run.interpolate(found["image"][:, 0], found["image"][:, -1], 8, labels=labels)
    off = np.abs(between.astype(int) - found["image"][:, 1:-1])
    assert off.max() <= 1 and off.mean() < 0.01  # rounding, where it meets the edge of a level
    one = run.interpolate(images[0], images[1], n=3, labels=(label[0], label[1]))
    assert one.shape == (3, 8, 8, 1)


def test_score_and_denoiser_are_the_model_s(run):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
    score, bare = run.score(x, 0.5, labels=[1, 2]), run.denoiser(labels=[1, 2], guidance=1.0)
    t, label = jnp.asarray(0.5), jnp.asarray([1, 2])
    np.testing.assert_allclose(score, run.model.bind(run.params, {"label": label}).score(x, t), rtol=1e-5, atol=1e-5)
    assert np.array_equal(bare.x0(x, t), run.model.bind(run.params, {"label": label}).x0(x, t))
    guided = run.denoiser(labels=[1, 2], guidance=2.0).x0(x, t)
    null = run.denoiser(labels=10, guidance=1.0)  # its condition has one label, for batches of one
    none = np.concatenate([null.x0(x[i : i + 1], t) for i in range(2)])
    np.testing.assert_allclose(guided, 2 * bare.x0(x, t) - none, rtol=1e-4, atol=1e-4)


def test_inpainting_keeps_what_is_known(run, digits):
    images, mask = digits["image"][:2], np.zeros((8, 8), bool)
    mask[:4] = True
    drawn = run.inpaint(
        images, mask, n=3, labels=digits["label"][:2], sampler=sf.samplers.ddim(n_steps=3), method="replacement"
    )
    assert drawn.shape == (2, 3, 8, 8, 1)
    assert np.array_equal(drawn[:, :, mask], np.repeat(images[:, None], 3, axis=1)[:, :, mask])
    assert not np.array_equal(drawn[:, 0], drawn[:, 1])


IMAGE = np.zeros((1, 8, 8, 1), np.uint8)
MISTAKES = {
    "no folder": (lambda run: sf.open(run.workdir / "nope"), "holds no config.json"),
    "no step": (lambda run: sf.open(run.workdir, step=7), "has no checkpoint of step 7; it has: 2"),
    "weights": (lambda run: sf.open(run.workdir, weights="best"), "weights are 'best'; give 'raw'"),
    "average": (lambda run: sf.open(run.workdir, weights=3), "the checkpoint has 1 EMA"),
    "another model": (lambda run: sf.open(run.workdir, network={"width": 8}), "network.width: 16 -> 8"),
    "key": (lambda run: sf.open(run.workdir, evl={"ema": 0}), "Did you mean 'eval'"),
    "sampler": (lambda run: run.sample(1, sampler=sf.samplers.heun), "give one that is made, such as sf"),
    "batch": (lambda run: run.sample(1, batch_size=0), "batch_size is 0; give a whole number"),
    "n": (lambda run: run.sample(0), "n is 0; give a whole number"),
    "label": (lambda run: run.sample(1, labels=[11]), "give 0 to 10 (10: no class)"),
    "no labels": (lambda run: run.encode(IMAGE), "the model has 10 classes: give labels"),
    "labels": (lambda run: run.encode(IMAGE, labels=[1, 2]), "there are 2 labels for 1 images"),
    "guidance": (lambda run: run.sample(1, guidance={"scael": 2.0}), "Did you mean 'scale'"),
    "dtype": (lambda run: run.encode(IMAGE / 16, labels=1), "images are float64 (1, 8, 8, 1); give uint8 (n, 8, 8, 1)"),
    "shape": (lambda run: run.bits_per_dim(IMAGE[0], labels=1), "images are uint8 (8, 8, 1); give uint8 (n, 8, 8, 1)"),
    "range": (lambda run: run.bits_per_dim(IMAGE + 17, labels=1), "levels up to 17; give uint8 (n, 8, 8, 1), levels"),
    "solver": (lambda run: run.encode(IMAGE, labels=1, solver={"methd": 1}), "Did you mean 'method'"),
    "z": (lambda run: run.decode(IMAGE, labels=1), "z is uint8 (1, 8, 8, 1); give floats"),
    "not finite": (lambda run: run.decode(IMAGE * np.nan, labels=1), "z holds numbers that are not finite"),
    "mask": (lambda run: run.inpaint(IMAGE, IMAGE[0, ..., 0], labels=1), "mask is uint8 (8, 8); give bool (8, 8)"),
    "pairs": (lambda run: run.interpolate(IMAGE, IMAGE[[0, 0]]), "first is (1, 8, 8, 1) and second (2, 8, 8, 1)"),
    "indices": (lambda run: run.bits_per_dim(IMAGE, labels=1, indices=np.arange(2)), "indices are int64 (2,)"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line(run, mistake):
    call, said = MISTAKES[mistake]
    with pytest.raises(sf.UserError) as error:
        call(run)
    assert said in str(error.value) and "\n" not in str(error.value)


# ---- published weights


@pytest.mark.slow
def test_published_weights_with_and_without_a_workdir(tmp_path, capsys):
    file, settings = CASES["sit/models"]
    reference = tmp_path / "settings.json"
    reference.write_text(json.dumps(settings))
    run = sf.open_published(file, reference_config=reference, model={"ema_rate": (0.5,)})
    assert not list(tmp_path.glob("*/")) and run.weights == "ema" and run.config.model.ema_rate == (0.5,)
    imported = sf.open_published(file, reference_config=reference, workdir=tmp_path / "run")
    assert capsys.readouterr().out == "" and sf.open(tmp_path / "run").step == imported.step == run.step
    x = np.random.default_rng(0).normal(size=(2, *run.image_shape)).astype(np.float32)
    label = None if not run.experiment.conditioning.num_classes else [0, 1]
    assert np.array_equal(run.score(x, 0.5, labels=label), imported.score(x, 0.5, labels=label))
    with pytest.raises(sf.UserError, match="SiT-custom"):
        sf.open_published(file)
