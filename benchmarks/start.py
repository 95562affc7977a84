"""How long a start takes: --help, a mistake, and training to its first steps, cold and with its programs kept.

Each is main.py in a process of its own. Help and a mistake are held to a second of a processor. A cold start compiles
everything, with an empty folder for kept programs; a warm one is the same command again, and loads them: both run two
steps of NCSN++ of an eighth of the width on a CPU. What counts is the processor's time, of all threads together, so
that other work on the machine changes little; wall clocks stand beside it. Goal: warm / cold <= 0.2.

    python -m benchmarks.start
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from benchmarks.measure import MIN_TRIALS, Options, Row, main, row
from score_flow.config.options import Config
from score_flow.config.registries import ROOT

SECOND, WARM = 1.0, 0.2  # goals
DIGITS = "--config=configs/digits.py"
SMALL = [
    DIGITS, "--config.path.name=ve", "--config.network.name=ncsnpp", "--config.network.width=16",
    "--config.network.num_res_blocks=2", "--config.model.time=log_sigma", "--config.training.batch_size=16",
    "--config.training.n_iters=2", "--config.training.log_freq=1", "--config.training.snapshot_sampling=False",
]  # fmt: skip


def measure(config: Config, options: Options) -> Iterable[Row]:
    """A row each for --help, for a mistake, and for a warm start over a cold one."""
    with tempfile.TemporaryDirectory() as place:
        cases = {"start_help": ["--help"], "start_mistake": [DIGITS, "--mode=train", "--config.training.n_iter=5"]}
        for name, flags in cases.items():
            taken = np.array([start(Path(place), *flags, f"--workdir={place}/none") for _ in range(MIN_TRIALS)])
            yield row(name, taken[:, 0], "s", taken[:, 0] / SECOND, "a second of a processor", 1.0)
        cold, warm = (start(Path(place), *SMALL, "--mode=train", f"--workdir={place}/{i}") for i in range(2))
        yield row(
            "start_warm", np.array([warm[0]]), "s", np.array([warm[0] / cold[0]]), "a cold start", WARM,
            cold=cold[0], wall=warm[1], cold_wall=cold[1], network="NCSN++ of width 16",
        )  # fmt: skip


def start(cache: Path, *flags: str) -> tuple[float, float]:
    """Seconds of the processor and of the clock that main.py takes."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMPILATION", "JAX_PERSIST"))}
    before, clock = _seconds(), time.perf_counter()
    subprocess.run(
        [sys.executable, "main.py", *flags], cwd=ROOT, env=own | {"XDG_CACHE_HOME": str(cache)}, check=False,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return _seconds() - before, time.perf_counter() - clock


def _seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(measure))
