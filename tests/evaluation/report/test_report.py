"""The report is one well-formed, self-contained page of whatever a run has left."""

import base64
import io
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from evaluation.jobs.base import by_place
from evaluation.report import figures, one_run
from evaluation.report.pictures import grid
from score_flow.config import registries
from tests.discover import thinned

VOID = {"meta", "img", "br", "hr"}
RNG = np.random.default_rng(0)
REAL = RNG.integers(0, 17, (300, 8, 8, 1), np.uint8)
SAMPLES = RNG.integers(0, 17, (256, 8, 8, 1), np.uint8)
TRAJECTORY = RNG.integers(0, 17, (2, 10, 16, 8, 8, 1), np.uint8)
BITS = RNG.normal(2.3, 0.2, (2, 297))
JOBS = by_place(registries.JOBS.names())
FACTS = {"step": "5000", "device": "8 x cpu (cpu)", "sampler": "name=ode"}
RESULTS = {
    "likelihood": {"bits_per_dim": 2.3124, "standard_error": 0.0172, "n_images": 297, "split": "digits/test"},
    "samples": {
        "n_samples": 256, "network_calls_per_sample": 142.0, "features": "hidden layer (64)", "frechet_distance": 1.049,
        "frechet_distance_train": 1.221, "classifier_confidence": 0.9642, "classifier_confidence_test": 0.9731,
        "class_counts": [20, 236],
    },
    "loss": {
        "loss": 0.27121, "standard_error": 0.0031, "n_images": 297, "split": "digits/test", "by_time": [0.9, None, 0.2],
    },
    "trajectory": {"n_samples": 8, "n_times": 10},
    "bound": {"bits": 3.14159, "terms": {"prior": 0.25}},
}  # fmt: skip


STARTS = [  # on two machines; of the second one nothing more is known
    {"step": 0, "time": "2026-01-01T00:00:00+00:00", "command": "python main.py --mode=train", "commit": 40 * "a",
     "changes": True, "host": "first", "devices": "8 x cpu", "packages": {"jax": "0.10", "numpy": "2.4"}},
    {"step": 2500, "host": "second"},
]  # fmt: skip


def make_run(folder):
    """A run that has everything: (workdir, evaluation folder)."""
    workdir, evaluation = folder / "my-run", folder / "my-run" / "eval" / "5000"
    for job, result in RESULTS.items():
        (evaluation / job).mkdir(parents=True)
        (evaluation / job / "result.json").write_text(json.dumps(result))
    config = {"path": {"name": "linear"}, "network": {"name": "sit", "width": 64}, "note": '<b>bold</b> & "quoted"'}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "parameters.txt").write_text("| kernel | (4, 4) |\nTotal: 327,873 -- 1,311,492 bytes\n")
    rows = [{"step": s, "loss": 1 / s, "grad_norm": 1.0, "seconds": s / 10} for s in range(50, 5001, 50)]
    rows += [{"step": 1000, "test_loss": 0.3}, {"step": 2000, "test_loss": float("nan")}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 50')
    (workdir / "runs.jsonl").write_text("".join(json.dumps(start) + "\n" for start in STARTS) + '{"step": 7')
    np.savez(evaluation / "likelihood" / "bits.npz", bits=BITS)
    np.savez(evaluation / "samples" / "samples.npz", image=SAMPLES, label=np.arange(256) % 10)
    times = np.linspace(1, 1e-5, 10)
    np.savez(evaluation / "trajectory" / "trajectory.npz", image=TRAJECTORY[0], x0=TRAJECTORY[1], t=times)
    return workdir, evaluation


@pytest.fixture
def run(tmp_path):
    """One to change."""
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of one that has everything."""
    return report(make_run(tmp_path_factory.mktemp("report")))


class Page(HTMLParser):
    """Checks that tags are balanced; collects text, headings, tags and attributes."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"nothing is open before </{tag}>"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append((self.open[-1] if self.open else "", data.strip()))

    def headings(self):
        return [text for tag, text in self.text if tag == "h2"]

    def images(self):
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def texts(self):
        return [text for _, text in self.text if text]


def report(run, real=REAL, facts=FACTS):
    file = one_run.write(*run, JOBS, real=real, levels=17, facts=facts)
    assert file == run[0] / "report.html"
    return Page(file.read_text(encoding="utf-8"))


def pixels(image):
    """The picture in a data URI."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["src"].removeprefix("data:image/png;base64,")))))


# ---- a whole run


def test_all_sections_in_order(whole):
    got = whole
    expected = ["Samples", "From noise to data", "Loss", "Likelihood", "Training", "Figures", "Setup"]
    assert got.headings() == expected
    assert ("h1", "my-run") in got.text
    assert "linear path · sit network · step 5000" in got.texts()


def test_headline_figures(whole):
    texts = whole.texts()
    cards = {
        "bits / dim": ["2.312", "± 0.017", "297 images of digits/test"],
        "Fréchet distance": ["1.05", "training images: 1.22"],
        "classifier confidence": ["96.4%", "test images: 97.3%"],
        "network calls": ["142", "a sample"],
        "training": ["8 min 20 s", "5,000 steps"],
        "parameters": ["328 k", "327,873"],
    }
    for name, values in cards.items():
        start = texts.index(name) + 1
        assert texts[start : start + len(values)] == values


def test_nothing_is_fetched(run):
    file = one_run.write(*run, JOBS, real=REAL, levels=17, facts=FACTS)
    html = file.read_text(encoding="utf-8")
    tags = Page(html).tags
    references = [
        value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href", "srcset")
    ]
    assert references
    assert all(value.startswith("data:image/png;base64,") for value in references)
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object", "base"}
    for value in references:
        html = html.replace(value, "")  # base64 may spell anything
    assert not [word for word in ("url(", "@import", "http") if word in html]
    assert file.stat().st_size < 3e6


def test_pictures_are_what_they_say(whole):
    images = whole.images()
    assert all(len(image["alt"]) > 10 for image in images)
    by_alt = {image["alt"]: pixels(image) for image in images}
    np.testing.assert_array_equal(by_alt["100 samples of the model"], grid(SAMPLES[:100], 17)[..., 0])
    assert by_alt["100 images of the test set"].shape == by_alt["100 samples of the model"].shape
    order = np.argsort(BITS.mean(axis=0))
    for which, chosen in (("most", order[:16]), ("least", order[::-1][:16])):
        np.testing.assert_array_equal(by_alt[f"The {which} likely images"], grid(REAL[chosen], 17, columns=8)[..., 0])


def test_a_trajectory_is_a_row(whole):
    for states, what in zip(TRAJECTORY, ("State x(t)", "Denoised estimate"), strict=True):
        got = next(pixels(image) for image in whole.images() if image["alt"].startswith(what))
        assert got.shape == (8 * 9 - 1, 10 * 9 - 1)  # eight samples at ten times, a line between
        np.testing.assert_array_equal(got[9:17], grid(states[:, 1], 17, columns=10)[..., 0])


def test_every_figure_is_in_a_table(whole):
    texts = whole.texts()
    for name, value in {
        "bits": "3.14159",
        "terms.prior": "0.25",
        "class_counts": "20, 236",
        "by_time": "0.9, none, 0.2",
    }.items():
        assert value in [texts[i + 1] for i, text in enumerate(texts) if text == name]
    assert {"network.width", "8 x cpu (cpu)"} <= set(texts)


def test_text_is_escaped(run):
    hostile = '<script>alert("1")</script>'
    run[0].joinpath("parameters.txt").write_text(hostile)
    run[1].joinpath("bound", "result.json").write_text(json.dumps({hostile: [hostile]}))
    run[1].joinpath("samples", "result.json").write_text(json.dumps({"features": hostile}))
    got = report(run, facts={"step": hostile, hostile: hostile})
    assert "script" not in {tag for tag, _ in got.tags}
    assert '<b>bold</b> & "quoted"' in got.texts()
    assert got.texts().count(hostile) >= 5


# ---- what may be missing

PIECES = {
    "config.json": {"Configuration"},
    "parameters.txt": {"327,873", "Parameters"},
    "metrics.jsonl": {"5,000 steps", "Loss over training"},
    "runs.jsonl": {"Starts of training", f"{12 * 'a'} with changes", "first", "second", "2500"},
    "eval/5000/samples": {"Samples", "Fréchet distance", "classifier confidence", "network calls"},
    "eval/5000/trajectory": {"From noise to data"},
    "eval/5000/likelihood": {"Likelihood", "bits / dim"},
    "eval/5000/loss": {"loss", "Loss by time: mean 0.2712 ± 0.0031 over 297 images of digits/test"},
    "eval/5000/bound": {"bound"},
}


@pytest.mark.parametrize("piece", thinned(PIECES, 3))
def test_without_a_piece_its_parts_are_left_out_and_no_other(run, whole, piece):
    path = run[0] / piece
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    left = set(report(run).texts())
    everything = set().union(*PIECES.values())
    assert everything <= set(whole.texts())
    assert everything & left == everything - PIECES[piece]


def test_of_nothing(tmp_path):
    got = report((tmp_path, tmp_path / "eval"), real=REAL[:0], facts={})
    assert got.headings() == []
    assert ("h1", tmp_path.name) in got.text


@pytest.mark.parametrize("n", [0, 1, 5])
def test_few_images(run, n):
    """Fewer test images than samples or likelihoods: sheets are as large as both allow."""
    images = report(run, real=REAL[:n]).images()
    sizes = {image["alt"]: pixels(image).shape for image in images}
    side = {0: 10, 1: 1, 5: 3}[n]
    assert sizes[f"{n or 100} samples of the model"][1] == 9 * side - 1
    assert ("The most likely images" in sizes) == (n >= 2)


def test_figures_that_are_not_there(run):
    """Results without optional figures, or with an error that one image does not have."""
    run[1].joinpath("samples", "result.json").write_text("{}")
    run[1].joinpath("likelihood", "result.json").write_text(
        '{"bits_per_dim": 2.5, "standard_error": NaN, "n_images": 1}'
    )
    texts = report(run).texts()
    assert "Samples" in texts
    assert "Fréchet distance" not in texts
    assert texts[texts.index("bits / dim") + 1 :][:2] == ["2.500", "1 images of the data"]


def test_bits_of_another_split_rank_no_test_images(run):
    run[1].joinpath("results.json").write_text('{"data": "digits/train"}')
    assert not [image for image in report(run).images() if "likely" in image["alt"]]


def test_colour_and_large_images(run):
    """Sheets of large images stay small in number and in pixels."""
    large = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (20, 256, 256, 3))
    np.savez(run[1] / "samples" / "samples.npz", image=large)
    np.savez(run[1] / "trajectory" / "trajectory.npz", image=large[:16].reshape(8, 2, 256, 256, 3), t=np.arange(8) / 8)
    images = [pixels(image) for image in report(run, real=large).images() if "class" not in image]
    assert len(images) == 5
    assert all(image.shape[1] <= 660 and image.shape[2] == 3 for image in images)


def test_written_again_whole(run):
    first = one_run.write(*run, JOBS, real=REAL, levels=17, facts=FACTS).read_bytes()
    assert one_run.write(*run, JOBS, real=REAL, levels=17, facts=FACTS).read_bytes() == first
    assert [file.name for file in run[0].glob("report*")] == ["report.html"]


# ---- parts


def test_quality_over_checkpoints(run):
    """A plot of each figure that two checkpoints have, of whatever job; other folders beside them are none."""
    for step, bits in ((1000, 2.6), (5000, 2.3), ("notes", 9.0)):
        folder = run[1].parent / str(step)
        folder.mkdir(exist_ok=True)
        jobs = {"likelihood": {"bits_per_dim": bits, "standard_error": 0.01}, "bound": {"bits_per_dim": bits + 0.1}}
        one = {"fid": {"fid": 3.1}} if step == 1000 else {}
        (folder / "results.json").write_text(json.dumps(jobs | one | {"step": step, "weights": "raw"}))
    got = report(run)
    assert "Quality over checkpoints" in got.headings()
    assert [image["alt"] for image in got.images() if "over steps" in image["alt"] and "loss" not in image["alt"]] == [
        "Curves of bits_per_dim over steps"
    ]


def test_card_of_the_fid(run):
    """It says by which features."""
    (run[1] / "fid").mkdir()
    result = {"fid": 3.14159, "n_samples": 5000, "features": "InceptionV3", "recall": 0.625}
    (run[1] / "fid" / "result.json").write_text(json.dumps(result))
    texts = report(run).texts()
    assert texts[texts.index("FID") + 1 :][:2] == ["3.14", "5,000 samples, features: InceptionV3"]
    assert texts[texts.index("recall") + 1] == "0.625"  # of no card: like every figure, in a table


def test_curves_over_steps_have_errors():
    """A point with an error, one without, a flat line: a picture each."""
    for curves in ({"a": [(1, 2.0, 0.1), (2, 1.5, np.nan)]}, {"a": [(1, 2.0, 0.0)], "b": [(1, 2.0, 0.1)]}):
        assert Image.open(io.BytesIO(figures.over_steps(curves, "x"))).size[0] > 500
