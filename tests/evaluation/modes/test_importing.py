"""`--mode=import` on real checkpoints: what fits goes in and is used as any run; what does not is refused by name."""

import json
import pickle
import zipfile

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from evaluation.modes.importing import open_published
from main import EXIT_USER_ERROR, main
from score_flow.errors import UserError
from score_flow.runs.checkpoint import Checkpoints
from tests.discover import thinned
from tests.golden_data import golden_dir, load
from tests.pretrained.imported import Imported

FOLDERS = ("score_sde/models", "score_sde/models_jax", "sit/models")


def smallest(folder):
    """The case with the smallest checkpoint of a folder: (name, file, the source's settings)."""
    files = [f for f in (golden_dir() / folder).glob("*") if f.suffix in (".pth", ".pt", ".msgpack")]
    file = min((f for f in files if not f.stem.endswith("_bare")), key=lambda f: f.stat().st_size)
    description, _ = load(f"{folder}/{file.stem}")
    return file, description.get("config") or description["kwargs"]


CASES = {folder: smallest(folder) for folder in FOLDERS if (golden_dir() / folder).is_dir()}
SUPERRES = golden_dir() / "improved_diffusion/models/superres"


@pytest.fixture(params=CASES, scope="module")
def imported(request):
    file, settings = CASES[request.param]
    found = Imported(file, settings, "float32")
    return found, found.model()


def refused(imported, model, kind, change):
    """What is said of the weights after a change of their tensors."""
    published = imported.published
    tensors = dict(published.checkpoint.weights[kind])
    change(tensors)
    weights = published.checkpoint.weights | {kind: tensors}
    imported.published = published._replace(checkpoint=published.checkpoint._replace(weights=weights))
    try:
        with pytest.raises(UserError) as error:
            imported.params(model, kind)
    finally:
        imported.published = published
    assert "\n" not in str(error.value)
    return str(error.value)


def parameters_of(imported, model, kind):
    """The names of tensors that become parameters."""
    return [name for leaf in imported.layout(model).leaves.values() for name in leaf.names]


@pytest.mark.parametrize("kind", thinned(["ema", "raw"], 2))
def test_every_mutation_is_refused_by_name(imported, kind):
    imported, model = imported
    tensors = imported.published.checkpoint.weights[kind]
    names = parameters_of(imported, model, kind)
    for name in (names[0], names[-1]):
        assert f"{name} is missing" in refused(imported, model, kind, lambda t, n=name: t.pop(n))
        said = refused(imported, model, kind, lambda t, n=name: t.__setitem__(f"{n}_2", t.pop(n)))
        assert f"{name} is missing" in said and f"{name}_2 is not part of this network" in said
        assert name in refused(imported, model, kind, lambda t, n=name: t.__setitem__(n, np.stack([t[n], t[n]])))
        assert f"{name} is not finite" in refused(
            imported, model, kind, lambda t, n=name: t.__setitem__(n, np.full_like(t[n], np.nan))
        )
    oblong = [n for n in names if tensors[n].ndim > 1 and tensors[n].shape != tensors[n].T.shape]
    for name in oblong[:: max(1, len(oblong) // 2)]:
        assert name in refused(imported, model, kind, lambda t, n=name: t.__setitem__(n, t[n].T))
    said = refused(imported, model, kind, lambda t: t.__setitem__("left.over", np.zeros(3, np.float32)))
    assert "left.over is not part of this network" in said


def test_another_architecture_is_refused(imported):
    imported, model = imported
    field = "depth" if hasattr(model.network.inner, "depth") else "width"
    other = model.network.inner.clone(**{field: 2 * getattr(model.network.inner, field)})
    with pytest.raises(UserError, match="do not fit the network"):
        imported.params(model.__class__(model.network.clone(inner=other), *_rest(model)), "raw")


def _rest(model):
    return model.path, model.prediction, model.preconditioning


def test_a_truncated_file_is_refused(tmp_path):
    for file, _ in CASES.values():
        cut = tmp_path / file.name
        cut.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises(UserError, match=file.stem):
            open_published(str(cut))


def test_a_checkpoint_that_holds_code_is_refused_and_nothing_runs(tmp_path):
    canary = tmp_path / "canary"

    class Code:
        def __reduce__(self):
            return open, (str(canary), "w")

    file = tmp_path / "evil.pth"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": Code(), "ema": {}}, 2))
    with pytest.raises(UserError, match="open"):
        open_published(str(file))
    assert not canary.exists()


def test_a_file_of_no_project_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no checkpoint of .*score_sde_pytorch.*: it holds a.weight"):
        open_published(str(tmp_path / "other.safetensors"))


def test_names_of_bare_files_say_what_they_hold():
    if not SUPERRES.is_dir():
        pytest.skip("no golden file of improved-diffusion")
    file = next(SUPERRES.glob("ema_*.pt"))
    published = open_published(str(file))
    assert list(published.checkpoint.weights) == ["ema"]
    assert published.checkpoint.step == int(file.stem.rpartition("_")[2]) > 0


@pytest.mark.slow
def test_import_then_sample_then_likelihood_from_the_command_line(tmp_path, capsys):
    """The smallest SiT, with its settings; its file holds both kinds of weights."""
    if "sit/models" not in CASES:
        pytest.skip("no golden file of SiT")
    file, settings = CASES["sit/models"]
    reference, images, workdir = tmp_path / "theirs.json", tmp_path / "images.npz", tmp_path / "run"
    reference.write_text(json.dumps(settings))
    shape = (8, settings["input_size"], settings["input_size"], settings["in_channels"])
    rng = np.random.default_rng(0)
    np.savez(images, image=rng.integers(0, 256, shape, np.uint8), label=np.arange(8) % settings["num_classes"])
    common = [f"--workdir={workdir}"]
    assert main([*common, "--mode=import", f"--checkpoint={file}", f"--reference_config={reference}"]) == 0
    assert "ema and raw weights of sit" in capsys.readouterr().out

    saved = Checkpoints(workdir / "checkpoints")
    meta = saved.meta(saved.steps()[0])
    assert meta["weights"] == {"raw": "raw", "ema": "ema"} and meta["imported"]["file"] == file.name
    assert len(meta["imported"]["sha256"]) == 64

    steps = ["--config.sampling.n_steps=10", "--config.sampling.method=euler", "--config.eval.batch_size=8"]
    assert main([*common, "--mode=sample", "--config.eval.num_samples=8", *steps]) == 0
    samples = next(workdir.glob("samples/*/samples/samples.npz"))
    assert np.load(samples, allow_pickle=False)["image"].shape == shape

    data = [f"--config.data.source.path={images}", "--config.eval.enable_sampling=False"]
    data += ["--config.eval.enable_loss=False", "--config.eval.enable_bpd=True", "--config.eval.solver.n_steps=4"]
    assert main([*common, "--mode=eval", "--config.data.source.name=arrays", *data, *steps]) == 0
    result = json.loads(next(workdir.glob("eval/*/likelihood/result.json")).read_text())
    assert result["n_images"] == 8 and np.isfinite(result["bits_per_dim"])

    again = [*common, "--mode=import", f"--checkpoint={file}", f"--reference_config={reference}"]
    assert main(again) == EXIT_USER_ERROR and "holds checkpoints already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "needs --checkpoint"),
        (["--checkpoint=missing.pth"], "missing.pth"),
    ],
)
def test_what_is_not_said_is_asked_for(tmp_path, capsys, flags, said):
    assert main([f"--workdir={tmp_path}", "--mode=import", *flags]) == EXIT_USER_ERROR
    assert said in capsys.readouterr().err


def test_a_bare_file_needs_a_recipe_or_settings(tmp_path, capsys):
    if not SUPERRES.is_dir():
        pytest.skip("no golden file of improved-diffusion")
    file = next(SUPERRES.glob("*.pt"))
    assert main([f"--workdir={tmp_path}", "--mode=import", f"--checkpoint={file}"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert "give --config, or --reference_config=FILE" in said and "json.dump(vars(args)" in said


@pytest.mark.slow
def test_training_goes_on_from_imported_weights(tmp_path):
    """A fresh optimiser, the file's weights: the first step starts from them."""
    if "sit/models" not in CASES:
        pytest.skip("no golden file of SiT")
    file, settings = CASES["sit/models"]
    reference, images = tmp_path / "theirs.json", tmp_path / "images.npz"
    reference.write_text(json.dumps(settings))
    shape = (8, settings["input_size"], settings["input_size"], settings["in_channels"])
    np.savez(images, image=np.zeros(shape, np.uint8), label=np.arange(8, dtype=np.int32) % settings["num_classes"])
    common = [f"--workdir={tmp_path / 'run'}", "--config.optim.lr=0.0", "--config.training.batch_size=8"]
    common += ["--config.data.source.name=arrays", f"--config.data.source.path={images}"]
    common += ["--config.training.n_iters=2", "--config.training.snapshot_sampling=False"]
    start = [*common, "--mode=import", f"--checkpoint={file}", f"--reference_config={reference}"]
    assert main(start) == 0 and main([*common, "--mode=train"]) == 0
    saved = Checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.steps() == [0, 2]
    first, second = (_params(saved.directory / str(step)) for step in saved.steps())
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def _params(step):
    return jax.tree.leaves(ocp.StandardCheckpointer().restore(step / "params"))
