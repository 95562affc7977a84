"""What a machine with one GPU does in a few minutes: training, sampling, likelihood, features of the FID, the loader.

    python -m benchmarks.gpu --minutes 8

The rows come one by one, the most important first, each in a process of its own: what fails, runs out of memory or
takes longer than its share of the time that is left says so in its line, and the next one starts. Nothing is needed but
the program: states and images are random, and no data are read. mfu is the share of the chip's published bfloat16 peak
(evaluation/plan/chips.py) that useful FLOPs take: three forward passes of a train step, what a network's calls take of
sampling and of a likelihood. Compiling is not timed, and is said.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LEAST = 20.0  # seconds below which no row is begun
TIMED = 0.35  # of a row's share: what is left is to start and to compile
PACKAGES = ("jax", "jaxlib", "flax", "optax", "diffrax", "numpy")


class Part(NamedTuple):
    """A row: what measures it (benchmarks/parts.py), of what, and its share of the time."""

    measure: str
    case: str
    share: float


ROWS = {
    "train_sit_xl_2": Part("train", "sit_xl_2", 4),
    "train_ncsnpp_cifar10": Part("train", "ncsnpp_cifar10", 5),
    "train_sit_b_2": Part("train", "sit_b_2", 2),
    "train_adm_64": Part("train", "adm_64", 5),
    "sampling_sit_xl_2": Part("sampling", "sit_xl_2", 3),
    "likelihood_sit_b_2": Part("likelihood", "sit_b_2", 3),
    "fid_features": Part("features", "", 1.5),
    "loader": Part("loader", "", 1),
}


def run_all(command: Callable[[str, float], list[str]], minutes: float, say: Callable[[dict[str, Any]], None]) -> int:
    """Run the rows within some minutes and say each; command: of a row and its seconds. Returns how many failed."""
    end, failed = time.monotonic() + 60 * minutes, 0
    for i, (name, part) in enumerate(ROWS.items()):
        left = end - time.monotonic()
        share = left * part.share / sum(each.share for each in list(ROWS.values())[i:])
        if left < LEAST:
            found = [{"error": f"not run: {left:.0f} of {60 * minutes:.0f} s are left"}]
        else:  # what a row does not use, those after it have; what it lacks, at most half of what they have
            found = alone(command(name, TIMED * share), min(left, max(share, LEAST) + 0.5 * (left - share)))
        for row in found:
            failed += "error" in row
            say({"name": name} | row | {"seconds": round(left - (end - time.monotonic()), 1)})
    return failed


def alone(command: list[str], limit: float) -> list[dict[str, Any]]:
    """Rows that a command prints; what ends otherwise is a row that says how, with the last line of its errors."""
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, errors = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return [{"error": f"no result within {limit:.0f} s"}]
    rows = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    if child.returncode:
        last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
        rows.append({"error": f"exit code {child.returncode}: {last[:300]}"})
    return rows or [{"error": "no row"}]


def one(name: str, seconds: float, tiny: bool) -> None:
    """Measure a row in this process and print it."""
    import jax

    from benchmarks import parts
    from benchmarks.measure import made_by
    from score_flow.runs import programs

    programs.keep()  # a second run of this command has more of its time for measuring
    part = ROWS[name]
    about = {
        "device": jax.devices()[0].device_kind, "n_devices": jax.device_count(), "tiny": tiny,
        **made_by(*PACKAGES),
    }  # fmt: skip
    for row in parts.MEASURES[part.measure](part.case, seconds, tiny):
        print(json.dumps({"name": name} | row | about), flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the rows, print and keep their lines; the exit code is 1 where one failed."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Measure what one GPU does in a few minutes.")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all rows together, with compiling (8)")
    parser.add_argument("--out", type=Path, help="a file to which each line is added, besides printing it")
    parser.add_argument("--tiny", action="store_true", help="small networks: to try the command on a CPU")
    parser.add_argument("--row", choices=ROWS, help="this one alone, in this process")
    parser.add_argument("--seconds", type=float, default=30.0, help="of --row: how long it is timed (30)")
    flags = parser.parse_args(argv)
    if flags.row:
        one(flags.row, flags.seconds, flags.tiny)
        return 0

    def command(name: str, seconds: float) -> list[str]:
        own = [sys.executable, "-m", "benchmarks.gpu", f"--row={name}", f"--seconds={seconds:.1f}"]
        return own + ["--tiny"] * flags.tiny

    def say(row: dict[str, Any]) -> None:
        print(json.dumps(row), flush=True)
        if flags.out:
            with flags.out.open("a") as file:
                file.write(json.dumps(row) + "\n")

    return int(run_all(command, flags.minutes, say) > 0)


if __name__ == "__main__":
    sys.exit(main())
