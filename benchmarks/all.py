"""Every row: python -m benchmarks.all [--out FILE.json] [--seconds S], and --config flags as in main.py."""

import sys

from benchmarks import likelihood, loader, networks, sampler, torch_steps, train_step
from benchmarks.measure import main

MEASUREMENTS = (
    train_step.measure, networks.measure, likelihood.measure, sampler.measure, loader.measure, torch_steps.measure,
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(*MEASUREMENTS))
