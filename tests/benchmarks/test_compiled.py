"""What compiled programs do does not grow: the rows of benchmarks/results, counted anew."""

import json

import pytest

from benchmarks.compiled import CASES, RESULTS, count, keep, main, measure
from evaluation.plan.chips import HERE, machine
from evaluation.plan.compiling import step_of
from score_flow.config.loading import load
from score_flow.errors import UserError
from tests.launch import TINY

COUNTED = ("kernels", "moved", "float32_products", "collectives", "collective_bytes", "memory")
GROWTH = 1.05
ROWS = json.loads(RESULTS.read_text())
# The train step of TINY on eight devices of a CPU, by jax 0.10.2.
SMALL = dict(zip(COUNTED, (778, 0, 19, 1, 75784, 266788), strict=True))


def grown(now: dict, before: dict) -> dict:
    return {name: (before[name], now[name]) for name in COUNTED if now[name] > GROWTH * before[name]}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['program']}-{row['topology']}")
def test_no_row_grows(row):
    try:
        machine(row["topology"])
    except UserError as error:
        pytest.skip(str(error))
    assert not grown(measure(row["program"], row["topology"]), row)


def test_a_small_step_does_not_grow():
    target = machine(HERE)
    now = count(step_of(load(TINY[0].partition("=")[2], TINY[1:]), target), target)
    assert not grown(now, SMALL), [now[name] for name in COUNTED]


def test_rows_are_whole():
    """Each is of a program that there is, once, with what it was counted by."""
    names = [(row["topology"], row["program"]) for row in ROWS]
    assert len(set(names)) == len(names) > 0
    for row in ROWS:
        assert row["program"] in CASES and row["versions"]["jax"] and row["date"]
        assert all(isinstance(row[name], int) and row[name] >= 0 for name in COUNTED)


def test_a_row_takes_the_place_of_its_last(tmp_path):
    file = tmp_path / "rows.json"
    for kernels in (3, 2):
        for program in ("sit_b_2", "adm_64"):
            keep({"program": program, "topology": "h100:1", "kernels": kernels}, file)
    assert [(row["program"], row["kernels"]) for row in json.loads(file.read_text())] == [("adm_64", 2), ("sit_b_2", 2)]


@pytest.mark.parametrize("flags, said", [(["sit_b2"], "'sit_b_2'"), (["sit_b_2", "--topology=h100"], "h100:8")])
def test_a_mistake_is_one_line(capsys, flags, said):
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and said in error
