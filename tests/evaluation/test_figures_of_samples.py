"""Figures of samples as people ask for them, each by one command: shared, of images that exist, of seeds, of scales."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from evaluation.jobs import rounds
from main import EXIT_USER_ERROR
from tests.evaluation.classes import do, draw_data, make_run, result

pytestmark = pytest.mark.slow
FREE = ("n_samples", "images", "images_sha256", "n_images", "sampler", "labels", "network_calls_per_sample", "scale")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with statistics of its data, whose samples were drawn, written and judged by two jobs."""
    folder = tmp_path_factory.mktemp("run")
    make_run(folder, draw_data(folder / "data"))
    assert do(folder, "stats") == 0
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "drawer", counting(rounds.drawer, drawn))
        assert do(folder, "eval", "only=('fid','samples')", "save_png=True", "batch_size=16") == 0
    assert sorted(drawn) == list(range(40))  # each once, for both
    return folder


def counting(drawer, seen):
    """The drawer, which notes the numbers of the samples that it draws."""

    def made(*args, **named):
        draw = drawer(*args, **named)
        return lambda *args: seen.extend(i for i in np.unique(args[3]).tolist() if i not in seen[-1:]) or draw(*args)

    return made


def refused(workdir, capsys, *flags, mode="eval", folder=""):
    capsys.readouterr()
    assert do(workdir, mode, *flags, folder=folder) == EXIT_USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1
    return lines[0]


def same_figures(one, other):
    names = [k for k, v in one.items() if isinstance(v, float) and k not in FREE]
    assert "frechet_distance" in names and "precision" in names
    for name in names:
        assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


def test_a_shared_job_gives_what_it_gives_alone(workdir, capsys):
    assert do(workdir, "eval", "only=fid", folder="alone") == 0
    assert not (workdir / "alone" / "40" / "samples").exists()
    alone, shared = result(workdir, "alone", "fid"), result(workdir, "eval", "fid")
    same_figures(alone, shared)
    assert alone["network_calls_per_sample"] == shared["network_calls_per_sample"] == 2
    # Not those of other samples
    assert do(workdir, "sample", "labels=0", folder="other") == 0
    drawn = "eval.labels is [0] there and [] here"
    assert drawn in refused(workdir, capsys, "only=fid", folder="other")


def test_fid_is_said_of_inceptions_features_alone(workdir, capsys):
    assert do(workdir, "eval", "only=fid", folder="eval") == 0
    printed = capsys.readouterr().out
    texts = (printed, (workdir / "eval" / "40" / "results.txt").read_text(), (workdir / "report.html").read_text())
    for text in texts:
        assert "FID" not in text.replace("InceptionV3 of FID", "") and "frechet" in text
    assert "step 40 frechet: frechet_distance" in printed and "\nfrechet.kid = " in texts[1]
    assert "features: leading" in texts[2] or "features: hidden layer" in texts[2]


def test_a_png_for_each_sample(workdir):
    folder = workdir / "eval" / "40" / "samples"
    with np.load(folder / "samples.npz") as archive:
        image, label = archive["image"], archive["label"]
    names = [f"{i:06d}_label{label[i]}.png" for i in range(40)]
    assert sorted(file.name for file in (folder / "png").iterdir()) == names
    for i in (0, 39):
        np.testing.assert_array_equal(np.asarray(Image.open(folder / "png" / names[i])), image[i])
    # What is missing of a result that is there is written, and nothing else
    times = {name: (folder / "png" / name).stat().st_mtime_ns for name in names}
    (folder / "png" / names[3]).unlink()
    assert do(workdir, "eval", "only=samples", "save_png=True") == 0
    changed = [name for name in names if (folder / "png" / name).stat().st_mtime_ns != times[name]]
    assert changed == [names[3]]


def test_images_that_exist(workdir, capsys):
    """The samples of the run as its PNG files, as a zip of them, and as ADM's .npz: the figures of the job fid."""
    pngs = workdir / "eval" / "40" / "samples" / "png"
    with zipfile.ZipFile(workdir / "samples.zip", "w") as archive:
        for file in sorted(pngs.iterdir()):
            archive.write(file, file.name)
    image = np.stack([np.asarray(Image.open(file)) for file in sorted(pngs.iterdir())])
    np.savez(workdir / "adm.npz", arr_0=image)
    expected = result(workdir, "eval", "fid")
    for path, name in ((pngs, "png"), (workdir / "samples.zip", "samples.zip"), (workdir / "adm.npz", "adm.npz")):
        assert do(workdir, "eval", f"samples={path}") == 0
        assert f"{name} images: frechet_distance" in capsys.readouterr().out
        [folder] = (workdir / "eval").glob(f"{name}-*")
        found = json.loads((folder / "images" / "result.json").read_text())
        same_figures(expected, found)
        assert (found["n_images"], found["images"]) == (40, name)
        assert found["key"]["image set"] == {"name": name, "n": 40, "sha256": found["images_sha256"]}
        assert folder.name == f"{name}-{found['images_sha256'][:8]}"
    assert "; images adm.npz;" in (folder / "results.txt").read_text()


@pytest.mark.parametrize(
    ("path", "flags", "words"),
    [
        ("nothing", (), "config.eval.samples: no such file or folder"),
        ("wide", (), "9x8 pixels of mode RGB; allowed: 8x8, 3 channel(s)"),
        ("grey.npz", (), "holds images of shape (8, 8, 1); allowed: (8, 8, 3), the run's."),
        ("one.npz", (), "the number of images of one.npz is 1; a Fréchet distance needs at least 2"),
        ("grey.npz", ("only=likelihood",), "it does not go with the job likelihood"),
    ],
)
def test_images_that_do_not_fit(workdir, tmp_path, capsys, path, flags, words):
    (tmp_path / "wide").mkdir()
    Image.new("RGB", (9, 8)).save(tmp_path / "wide" / "0.png")
    np.savez(tmp_path / "grey.npz", arr_0=np.zeros((4, 8, 8), np.uint8))
    np.savez(tmp_path / "one.npz", arr_0=np.zeros((1, 8, 8, 3), np.uint8))
    assert words in refused(workdir, capsys, f"samples={tmp_path / path}", *flags)


def test_one_job_alone_by_the_nearest_name(workdir, capsys):
    assert "config.eval.only is 'fidd'" in (line := refused(workdir, capsys, "only=fidd"))
    assert "Did you mean 'fid'?" in line
    assert "it does not go with --mode=sample" in refused(workdir, capsys, f"samples={workdir}", mode="sample")


def test_three_seeds(workdir):
    """Each as a run of that seed, with their mean and spread."""
    assert do(workdir, "eval", "only=fid", "seeds=3", "label_order=uniform", folder="seeds") == 0
    found = result(workdir, "seeds", "fid")
    assert [row["seed"] for row in found["by_seed"]] == [0, 1, 2] and found["n_seeds"] == 3
    distances = [row["frechet_distance"] for row in found["by_seed"]]
    assert len(set(distances)) == 3
    assert found["frechet_distance"] == pytest.approx(np.mean(distances))
    assert found["frechet_distance_std"] == pytest.approx(np.std(distances, ddof=1))
    assert "kid_standard_error" not in found
    assert do(workdir, "eval", "only=fid", ".seed=2", "label_order=uniform", folder="second") == 0
    same_figures(found["by_seed"][2] | {"seed": 2}, result(workdir, "second", "fid"))


def test_scales_of_guidance(workdir, capsys):
    """Each as a run of that scale, in a table and a curve."""
    assert do(workdir, "eval", "only=sweep", "sweep=(1.0,2.5)", folder="sweep") == 0
    found = result(workdir, "sweep", "sweep")
    assert [row["scale"] for row in found["rows"]] == [1, 2.5]
    same_figures(found["rows"][0], result(workdir, "eval", "fid"))
    assert do(workdir, "eval", "only=fid", ".guidance.scale=2.5", folder="guided") == 0
    same_figures(found["rows"][1], result(workdir, "guided", "fid"))
    assert found["best_scale"] == min(found["rows"], key=lambda row: row["frechet_distance"])["scale"]
    assert do(workdir, "eval", "only=sweep", "sweep=(1.0,2.5)", folder="sweep") == 0
    page = (workdir / "report.html").read_text()
    assert "Guidance scales" in page and "Curve of Fréchet distance over scales" in page
    assert "give scales of guidance, each once" in refused(workdir, capsys, "only=sweep", folder="new")
    line = refused(workdir, capsys, "only=sweep", "sweep=(1.0,2.0)", ".training.label_dropout=0.0", folder="new")
    assert "config.eval.sweep is (1.0, 2.0), but: config.guidance.scale is 2.0, but the model knows no null" in line


def test_a_zip_is_read_where_it_lies(workdir):
    with zipfile.ZipFile(workdir / "samples.zip") as archive:
        assert Image.open(io.BytesIO(archive.read(archive.namelist()[0]))).size == (8, 8)
