"""Machines by their names; those that are absent need a compiler, those that are none are refused."""

import os
import re
from unittest import mock

import jax
import pytest

from evaluation.plan import chips
from score_flow.errors import UserError


@pytest.fixture(autouse=True)
def environment():
    """What the compiler for TPUs is told is not told to the processes that other tests start."""
    with mock.patch.dict(os.environ):
        yield


@pytest.mark.parametrize(
    "topology, said",
    [
        ("h10:8", "Did you mean 'h100:8'?"),
        ("v5e:8", "Did you mean 'v5e:2x4'?"),
        ("v5p:2x4", "Did you mean 'v5p:2x2x2'?"),
        ("h100:2x4", "Did you mean 'h100:8'?"),
        ("v5e:0x4", "v5e:2x4"),
        ("h100:", "h100:8"),
        ("her", "Did you mean 'here'?"),
        ("tpu", "allowed"),
        ("h100:12", "nodes of 8"),
    ],
)
def test_what_is_no_machine(topology, said):
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        chips.machine(topology)
    assert topology in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("topology, extra", [("v5e:2x4", "tpu"), ("v5p:2x2x1", "tpu"), ("h100:8", "cuda13")])
def test_without_its_compiler(monkeypatch, topology, extra):
    """In the words by which jax says so."""
    absent = {
        "tpu": RuntimeError("JAX TPU support not installed; cannot generate TPU topology. See\nhttps://x"),
        "cuda13": NotImplementedError("topology not implemented for cuda"),
    }

    def get(*args, **options):
        raise absent[extra]

    monkeypatch.setattr(chips.topologies, "get_topology_desc", get)
    with pytest.raises(UserError, match=re.escape(f'pip install "jax[{extra}]"')) as refused:
        chips.machine(topology)
    assert "\n" not in str(refused.value)


def test_a_layout_that_no_slice_has(monkeypatch):
    def get(*args, **options):
        raise jax.errors.JaxRuntimeError('INVALID_ARGUMENT: Topology layout "v5e:3x3" is not divisible\nmore')

    monkeypatch.setattr(chips.topologies, "get_topology_desc", get)
    with pytest.raises(UserError, match="not divisible$"):
        chips.machine("v5e:3x3")


def test_nodes_and_the_memory_that_jax_takes(monkeypatch):
    """More than eight GPUs are several nodes; a process has a share of their memory, as its variable says."""
    asked = {}

    def get(name, platform, **options):
        asked.update(options, name=name)
        return chips.topologies.TopologyDescription(jax.devices())

    monkeypatch.setattr(chips.topologies, "get_topology_desc", get)
    monkeypatch.delenv(chips.SHARE, raising=False)
    assert chips.machine("h100:8").memory == int(0.75 * chips.CHIPS["h100"].memory) and asked["name"] == "1x1x8"
    monkeypatch.setenv(chips.SHARE, ".9")
    assert chips.machine("h200:16").memory == int(0.9 * chips.CHIPS["h200"].memory) and asked["name"] == "1x2x8"
    assert "core_count: 132 " in asked["target_config"] and "{ major: 9 minor: 0 }" in asked["target_config"]
    assert chips.machine("v5e:1x1").memory == 15.75 * 2**30
    assert asked["chips_per_host_bounds"] == (1, 1, 1)


def test_here():
    machine = chips.machine("here")
    assert machine.devices == jax.devices() and machine.chip is None and 2**28 < machine.memory < 2**42
    assert chips.chip_of("NVIDIA H100 80GB HBM3") is chips.CHIPS["h100"] and chips.chip_of("cpu") is None
