"""The job code through the command: bytes that decode to the images in another process, and files that are refused."""

import json

import numpy as np
import pytest

from score_flow.data import digits
from tests.launch import run

pytestmark = pytest.mark.slow
VP = ("--config.path.name=vp", "--config.model.prediction=noise", "--config.training.n_iters=10")
CODE = ("--config.eval.only=('code',)", "--config.eval.vlb_steps=6", "--config.eval.num_images=21")


def evaluated(workdir, folder, *flags, expected=0):
    output = run(workdir, *VP, *CODE, *flags, f"--eval_folder={folder}", mode="eval", expected=expected)
    return output.strip().splitlines()[-1] if expected else json.loads(
        (workdir / folder / "10/code/result.json").read_text()
    )  # fmt: skip


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A run, what its code cost, and the file."""
    workdir = tmp_path_factory.mktemp("code")
    run(workdir, *VP)
    return workdir, evaluated(workdir, "first"), workdir / "first/10/code/images.code"


def test_figures_are_those_of_the_file_and_of_the_bound(coded):
    _, result, file = coded
    n = 21 * 64
    assert result["file_bytes"] == file.stat().st_size == round(result["file_bits_per_dim"] * n / 8)
    assert result["images_decoded"] == result["n_images"] == 21
    assert abs(8 * result["file_bytes"] - result["initial_bits"] - result["bits_per_dim"] * n) < 1e-6
    with np.load(file.with_name("code.npz"), allow_pickle=False) as arrays:
        bits, bound = arrays["bits"], arrays["bound"]
    assert abs(result["above_bound"] - (bits - bound).mean()) < 1e-12
    assert abs(result["above_bound"]) < 4 * result["above_bound_error"]
    # The file has, beside what images cost, the lengths of lanes and less than two words of each state.
    assert 0 < (result["bits_per_dim"] - bits.mean()) * n < 64 + 8 * (32 + 64)


def test_the_file_decodes_in_another_process(coded):
    workdir, _, file = coded
    result = evaluated(workdir, "decoded", f"--config.eval.code_file={file}")
    assert result["images_decoded"] == 21
    with np.load(workdir / "decoded/10/code/decoded.npz", allow_pickle=False) as arrays:
        expected = digits.build("test").read(arrays["index"])["image"]
        np.testing.assert_array_equal(arrays["image"], expected)


def test_other_files_are_refused(coded, tmp_path):
    workdir, _, file = coded
    for name in (file.name, f"{file.name}.json"):
        (tmp_path / name).write_bytes(file.with_name(name).read_bytes())
    copy, facts = tmp_path / file.name, json.loads((tmp_path / f"{file.name}.json").read_text())
    flag = f"--config.eval.code_file={copy}"
    assert "cells was 16, is 4" in evaluated(workdir, "a", flag, "--config.eval.code_cells=4", expected=2)
    assert "program was" in evaluated(workdir, "b", flag, "--config.eval.vlb_steps=7", expected=2)
    beside = tmp_path / f"{file.name}.json"
    beside.write_text(json.dumps(facts | {"device": "abacus"}))
    assert "device was 'abacus', is" in evaluated(workdir, "c", flag, expected=2)
    copy.write_bytes(copy.read_bytes()[:-1])
    assert "is damaged" in evaluated(workdir, "d", flag, expected=2)
    beside.unlink()
    assert "there is no images.code.json" in evaluated(workdir, "e", flag, expected=2)


def test_a_network_that_is_told_more_is_refused(tmp_path):
    flags = (*VP, "--config.model.class_conditional=True", "--config.training.label_dropout=0.1")
    run(tmp_path, *flags)
    output = run(tmp_path, *flags, *CODE, mode="eval", expected=2)
    assert "is told more than the image (num_classes)" in output
