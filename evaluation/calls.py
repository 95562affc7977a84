"""Quality against network calls: the same samples by every sampler, at budgets from five calls to a thousand."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from evaluation.context import Context
from evaluation.drawing import drawer, joined, refuse_failed
from evaluation.features import Judge
from evaluation.fold import Fold, write_arrays
from score_flow.components import Component, resolve
from score_flow.sharding import is_main

FEW, MANY = (5, 10, 20, 50), (20, 50)  # network calls: of deterministic samplers, of stochastic ones

# sampler -> budgets, and its config section at a budget of n calls
SAMPLERS: dict[str, tuple[tuple[int, ...], Callable[[int], dict[str, Any]]]] = {
    "DDIM": (FEW, lambda n: {"name": "ddim", "n_steps": n}),
    "DPM-Solver++(2M)": (FEW, lambda n: {"name": "multistep", "n_steps": n, "order": 2}),
    "DPM-Solver++(3M)": (FEW, lambda n: {"name": "multistep", "n_steps": n, "order": 3}),
    "UniPC-2": (FEW, lambda n: {"name": "unipc", "n_steps": n, "order": 2}),
    "EDM Heun": (FEW, lambda n: {"name": "heun", "n_steps": (n + 1) // 2}),
    "probability flow, Heun": (FEW, lambda n: {"name": "ode", "method": "heun", "n_steps": n // 2, "t_min": 1e-3}),
    "DPM-Solver++(2M) SDE": (MANY, lambda n: {"name": "multistep", "n_steps": n, "order": 2, "variant": "sde"}),
    "reverse SDE, Euler": (MANY, lambda n: {"name": "sde", "n_steps": n - 1}),
    "ancestral": ((*MANY, 250, 1000), lambda n: {"name": "ancestral", "n_steps": n}),
    "predictor-corrector": (
        MANY,
        lambda n: {"name": "predictor_corrector", "n_steps": n // 2, "corrector": "langevin"},
    ),
}


KEPT = ("frechet_distance", "classifier_confidence", "classifier_accuracy")
REFERENCE = ("frechet_distance_train", "classifier_confidence_test", "features")
SHOWN = 16  # samples of each row that are kept for the report


class Budget(NamedTuple):
    """A sampler at a number of network calls, with the section of a config that says so."""

    sampler: str
    calls: int
    section: dict[str, Any]


def budgets() -> list[Budget]:
    """Every row of the table."""
    return [Budget(name, n, section(n)) for name, (numbers, section) in SAMPLERS.items() for n in numbers]


def build(context: Context) -> Fold:
    """A round draws a batch for a row; the result is {"rows": [{sampler, calls, frechet_distance, ...}]}."""
    run, table, n, b = context.run, budgets(), context.n_samples, context.batch_size
    per_row = context.rounds_of(n)
    current: dict[int, Any] = {}  # only the row at work is kept compiled

    (context.directory / "rounds").mkdir(parents=True, exist_ok=True)

    def file(row, part):
        return context.directory / "rounds" / f"{row:02d}-{part:06d}.npz"

    def init():
        return {"calls": np.zeros(len(table), np.int64)}

    def step(state, round_number):
        row, part = divmod(round_number, per_row)
        if row not in current:
            current.clear()
            current[row] = drawer(run, resolve("sampling", Component.of(table[row].section), "config.sampling"))
        indices = part * b + np.arange(b)
        arrays, calls, ok = current[row](context.params, context.guide, None, indices)
        wanted = indices < n
        refuse_failed(indices[wanted], ok[wanted])
        write_arrays(file(row, part), **{name: array[wanted] for name, array in arrays.items()})
        return {"calls": np.where(np.arange(len(table)) == row, calls, state["calls"])}

    def finish(state):
        if not is_main():
            return {}
        judge, rows, sheet = Judge(run.train_source, run.test_source), [], []
        for row, calls in enumerate(state["calls"].tolist()):
            arrays = joined([file(row, part) for part in range(per_row)])
            judged = judge(arrays["image"], arrays.get("label"))
            rows.append({"sampler": table[row].sampler, "calls": calls} | {k: judged[k] for k in KEPT if k in judged})
            sheet.append(arrays["image"][:SHOWN])
        write_arrays(context.directory / "calls.npz", image=np.stack(sheet))
        return {"n_samples": n, "rows": rows} | {k: judged[k] for k in REFERENCE if k in judged}

    return Fold(len(table) * per_row, init, step, finish)
