"""--mode=plan: what is printed, that nothing is written, and what is refused."""

import re

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from evaluation.modes import plan
from evaluation.plan import chips, compiling
from evaluation.plan.compiling import (
    Compiled,
    Need,
    cudnn_of,
    least_seconds,
    said_to_need,
    shares,
    step_of,
    useful_flops,
)
from evaluation.plan.fitting import Fit
from evaluation.plan.program import read
from main import EXIT_USER_ERROR, main
from score_flow.config.loading import load
from score_flow.errors import UserError
from score_flow.runs.workdir import write_config
from tests.launch import ROOT, TINY

BATCH = "--config.training.batch_size=16"
MLP = ["--config=configs/digits.py", BATCH, *(f"--config.network.{of}" for of in ("name=mlp", "width=64", "depth=1"))]
SIT = [f"--config.network.{of}" for of in ("width=16", "depth=1", "num_heads=2")]
PROGRAM = "ENTRY %f (x: f32[]) -> f32[] {\n  ROOT %x = f32[] parameter(0)\n}"
REMAT, FSDP = "--config.network.remat=full", "--config.training.fsdp=True"
SLICES = "--config.training.microbatches=2"


def planned(capsys, *flags: str) -> dict[str, str]:
    """The lines of a plan by their names."""
    assert main(["--mode=plan", *flags]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:17].strip()]
    return {line[:17].strip(): line[17:] for line in lines}


def test_here(capsys, tmp_path, monkeypatch):
    """Of a network on the devices of this machine, in a folder that stays empty."""
    monkeypatch.setattr(plan, "fitting", lambda total_of, limit, known, n: Fit(known[0], 0, None))
    recipe = f"--config={ROOT / 'configs/digits.py'}"
    monkeypatch.chdir(tmp_path)
    lines = planned(capsys, recipe, *MLP[1:])
    assert "8 x cpu" in lines["machine"] and re.match(r"[\d,]+ of MLP, .* float32", lines["parameters"])
    assert re.match(r"[\d.e+]+ useful FLOPs a step of the global batch 16$", lines["arithmetic"])
    assert re.match(r"all-reduce \d+ x, [\d.]+ \w+; in all [\d.]+ x the parameters", lines["collectives"])
    assert "it fits" in lines["memory"] and lines["attention"] == "none" and int(lines["kernels"].split()[0]) > 10
    assert lines["batch"].startswith("16 fits") and "to make it fit" not in lines
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "memory, expected",
    [
        (900, rf"{REMAT}: 800 B, \({SLICES} does not: 1 kB\)"),
        (500, rf"{REMAT} {FSDP}: 400 B, .*\({REMAT} does not: 800 B\), \({FSDP} does not: 600 B\)"),
        (300, rf"a smaller batch, or larger machines, .*\({REMAT} .*{FSDP} does not: 400 B\)"),
    ],
)
def test_what_does_not_fit(capsys, monkeypatch, memory, expected):
    """The first flags that help are named, with what the others came to; and the batch without any of them."""
    machine = chips.machine("here")._replace(memory=memory)

    def compiled(step, machine):
        split = not all(layout.is_fully_replicated for layout in jax.tree.leaves(step.shardings.params))
        full = 1000 - 200 * (step.run.loss.network.remat == "full") - 400 * split
        total = full * step.batch["image"].shape[1] // 16
        return Compiled(Need(0, total, 0, 0, total), total, read(PROGRAM))

    monkeypatch.setattr(plan, "compiled", compiled)
    monkeypatch.setattr(plan, "shares", lambda step: {"parameters": 0})  # else only what splits them would help
    monkeypatch.setattr(chips, "_here", lambda: machine)
    lines = planned(capsys, *MLP[:2], *SIT)
    assert f"1 kB on each device, of {memory} B: it does not fit" in lines["memory"]
    assert re.match(expected, lines["to make it fit"])
    assert lines["batch"].startswith("8 fits" if memory >= 500 else "none fits with these flags, not even 8")


def test_shares_and_flops():
    """One device's part of the state, and three forward passes: twice the parameters of each product, by its rows."""
    machine = chips.machine("here")
    whole, split = (step_of(load("configs/digits.py", [*MLP[1:], *more]), machine) for more in ((), (FSDP,)))
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(whole.state.params))
    assert shares(whole)["parameters"] == shares(whole)["averages"] == size < shares(whole)["optimiser"] < 2.1 * size
    assert size / 8 <= shares(split)["parameters"] < size / 4 and shares(split)["batch"] == 16 * 8 * 8 / 8
    products = sum(leaf.size for leaf in jax.tree.leaves(whole.state.params) if leaf.ndim == 2)
    assert useful_flops(whole) == 3 * 2 * 16 * products


def test_the_least_time_of_a_step_is_that_at_the_peak(monkeypatch):
    """Of eight devices; of what no peak is published nothing is known."""
    config, machine = load("configs/digits.py", MLP[1:]), chips.machine("here")
    step = step_of(config, machine)
    assert least_seconds(step.run, config) is None
    monkeypatch.setattr(compiling, "chip_of", lambda kind: chips.CHIPS["h100"]._replace(peak=1e6))
    assert least_seconds(step.run, config) == useful_flops(step) / 8e6

    def uncounted(step):
        raise ValueError("cannot count the FLOPs of a while loop")

    monkeypatch.setattr(compiling, "useful_flops", uncounted)
    assert least_seconds(step.run, config) is None


def test_a_workdir_says_which_config(capsys, tmp_path):
    """It is read, with --config or without, and not written to."""
    write_config(tmp_path, load("configs/digits.py", MLP[1:]))
    assert main(["--mode=plan", f"--workdir={tmp_path}", "--config.training.batch_size=20"]) == EXIT_USER_ERROR
    assert "20 does not divide among 8 devices" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--mode=plan"], "needs --config=RECIPE"),
        (["--mode=plan", *MLP, "--topology=v5e:8"], "Did you mean 'v5e:2x4'?"),
        (["--mode=plan", *MLP, "--topology="], "--topology is ''; allowed: v5e:2x4"),
        (["--mode=plan", *MLP, "--config.training.fsdp=3"], "must divide the 8 devices"),
        (["--mode=plan", *MLP, "--watch"], "--watch"),
        (["--mode=train", *TINY, "--workdir=x", "--topology=here"], "does not go with --mode=train"),
        (["--mode=train", *TINY], "--mode=train needs --workdir=FOLDER"),
    ],
)
def test_refusals(capsys, tmp_path, monkeypatch, flags, said):
    recipe = ROOT / "configs/digits.py"
    monkeypatch.chdir(tmp_path)
    assert main([flag.replace("configs/digits.py", str(recipe)) for flag in flags]) == EXIT_USER_ERROR
    [line] = [line for line in capsys.readouterr().err.splitlines() if line]
    assert line.startswith("error: ") and said in line and not list(tmp_path.iterdir())


def test_what_a_compiler_refused():
    said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (19.15G) "
    assert said_to_need(said + "exceeds available HBM (15.75G).") == int(19.15 * 2**30)
    assert said_to_need("RESOURCE_EXHAUSTED: Out of memory") is None


def test_the_targets_cudnn_answers_while_it_is_asked():
    """It is that of the GPU to compile for, which need not be here; then jax asks its own again, whatever happened."""
    asked = fused_attention_stablehlo
    own = asked.check_cudnn_version, asked.check_compute_capability
    with pytest.raises(KeyError), cudnn_of(chips.machine("here")._replace(name="a100:8")):
        answers = asked.check_cudnn_version(), *(asked.check_compute_capability(least) for least in ("9.0", "8.0"))
        raise KeyError
    assert answers == (90800, False, True)
    assert (asked.check_cudnn_version, asked.check_compute_capability) == own


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["h100:8", "v5e:2x4"])
@pytest.mark.parametrize("fsdp", [False, True])
def test_without_the_machine(capsys, monkeypatch, topology, fsdp):
    """For eight devices that are not there: attention by the target's platform, collectives those of parameters."""
    try:
        chips.machine(topology)
    except UserError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(plan, "fitting", lambda total_of, limit, known, n: Fit(known[0], 0, None))
    network = [*SIT[1:], "--config.network.width=64", "--config.model.precision=bf16"]
    lines = planned(capsys, *MLP[:2], *network, f"--topology={topology}", f"--config.training.fsdp={fsdp}")
    name = "NVIDIA H100" if topology == "h100:8" else "TPU v5 lite"
    assert f"8 x {name}" in lines["machine"] and "ms at least" in lines["arithmetic"]
    assert lines["attention"].startswith("fused: " if topology == "h100:8" else "not fused")
    share = float(re.search(r"in all ([\d.]+) x the parameters", lines["collectives"])[1])
    assert ("all-gather" in lines["collectives"]) == fsdp and 1 < share < 3.5
    assert "it fits" in lines["memory"]
