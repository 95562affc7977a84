"""Quality against network calls: the same samples by every sampler, at budgets from five calls to a thousand."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from evaluation.context import Context
from evaluation.fold import Fold, write_arrays
from evaluation.jobs.base import Job, Opened
from evaluation.jobs.rounds import drawing, drawn
from evaluation.metrics.features import Judge
from evaluation.report import page
from sampling.base import Sampler
from score_flow.config import registries
from score_flow.config.components import Component, resolve

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
    """List every row of the table."""
    return [Budget(name, n, section(n)) for name, (numbers, section) in SAMPLERS.items() for n in numbers]


def build(context: Context, table: list[Budget]) -> Fold:
    """Draw a batch for a row in a round; the result is {"rows": [{sampler, calls, frechet_distance, ...}]}."""
    run = context.run

    def row(budget):
        return functools.partial(drawing, context, sampler=functools.partial(sampler_of, budget))

    def finish(state, arrays):
        judge, rows = Judge(run.train_source, run.test_source), []
        for row, calls in enumerate(state["calls"].mean(axis=1).tolist()):
            judged = judge(arrays["image"][row], arrays["label"][row] if "label" in arrays else None)
            about = {"sampler": table[row].sampler, "calls": int(calls) if calls.is_integer() else calls}
            rows.append(about | {k: judged[k] for k in KEPT if k in judged})
        write_arrays(context.directory / "calls.npz", image=arrays["image"][:, :SHOWN])
        of = {"n_samples": context.n_samples, "split": run.test_source.name, **context.labels}
        return of | {"rows": rows} | {k: judged[k] for k in REFERENCE if k in judged}

    return drawn(context, finish, rows=[row(budget) for budget in table])


def sampler_of(budget: Budget) -> Sampler:
    """Make the sampler of a row."""
    return resolve(registries.SAMPLERS, Component.of(budget.section), "config.sampling")


def section(record: page.Record) -> str:
    """Show quality against network calls, as curves, as a table and as a few samples of every row of it."""
    from evaluation.report import figures  # matplotlib: mistakes are answered without waiting for it

    result = record.results["calls"]
    rows = [row for row in result.get("rows", []) if "frechet_distance" in row]
    if not rows:
        return ""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        curves.setdefault(row["sampler"], []).append((row["calls"], row["frechet_distance"]))
    plot = page.picture(
        figures.quality_by_calls(curves, result.get("frechet_distance_train"), "Fréchet distance"),
        "Curves of the Fréchet distance over network calls, one a sampler",
        f"Fréchet distance of {result['n_samples']:,} samples, the same noise for all; data themselves: dashed",
    )
    heads = ["sampler", "network calls", "Fréchet distance"]
    cells = [[row["sampler"], str(row["calls"]), f"{row['frechet_distance']:.3g}"] for row in rows]
    if all("classifier_accuracy" in row for row in rows):
        heads.append("right class")
        cells = [[*cell, f"{row['classifier_accuracy']:.1%}"] for cell, row in zip(cells, rows, strict=True)]
    return page.section("Quality against network calls", page.pair(plot, page.matrix(heads, cells)))


NEEDS = frozenset({"denoiser", "guidance", "pixels", "levels", "training images", "test images"})
job = Job(build, NEEDS, ("num_samples",), lambda run, options, workdir: Opened(budgets()), section, place=50)
