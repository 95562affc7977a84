"""The place of a process among the others, as the environment says it."""

import os
import subprocess
import sys

import pytest

from score_flow.sharding import PLACE, place_of
from score_flow.types import UserError
from tests.launch import ROOT

GOOD = ("localhost:12345", "2", "1")


def environment(*values):
    return dict(zip(PLACE, values, strict=True))


@pytest.mark.parametrize("address", ["localhost:1", "10.0.0.7:65535", "[::1]:8476", "node-3.cluster.local:8476"])
def test_a_place_is_an_address_a_number_of_processes_and_ones_own(address):
    assert place_of(environment(address, "3", " 2 ")) == (address, 3, 2)
    assert place_of(environment(address, "1", "0")) == (address, 1, 0)


def test_without_any_variable_a_process_is_on_its_own():
    assert place_of({"PATH": "/bin", "JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize("missing", PLACE)
def test_a_missing_variable_is_named(missing):
    given = environment(*GOOD)
    del given[missing]
    with pytest.raises(UserError, match=f"missing: {missing}\\.$"):
        place_of(given)


NUMBERS = ["", " ", "two", "-1", "+1", "1.0", "1e0", "1_0", "0x1", "१", "99999999999"]
WRONG = [(PLACE[1], value) for value in [*NUMBERS, "0"]] + [(PLACE[2], value) for value in [*NUMBERS, "2", "5"]]
WRONG += [(PLACE[0], value) for value in ["", "localhost", "localhost:", ":12345", "localhost:port", "localhost:0"]]
WRONG += [(PLACE[0], value) for value in ["localhost:70000", "http://localhost:80", "two hosts:80", "::1:80"]]


@pytest.mark.parametrize("name, value", WRONG)
def test_a_wrong_value_is_refused_in_one_line_that_names_it(name, value):
    with pytest.raises(UserError, match=f"^{name} is .*; allowed: ") as error:
        place_of(environment(*GOOD) | {name: value})
    assert repr(value) in str(error.value) and "\n" not in str(error.value)


def test_a_run_is_refused_before_it_writes(tmp_path):
    command = [sys.executable, "main.py", "--config=configs/digits.py", f"--workdir={tmp_path / 'run'}", "--mode=train"]
    place = os.environ | environment(*GOOD[:2], "5")
    run = subprocess.run(command, cwd=ROOT, env=place, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.strip() == "error: JAX_PROCESS_ID is '5'; allowed: an integer from 0 to 1."
    assert not (tmp_path / "run").exists()
