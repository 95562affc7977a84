"""The likelihood with the variational dequantiser (`--mode=train_deq`), beside that of eval.dequantizer."""

from pathlib import Path

from evaluation.context import Context
from evaluation.dequantizers import refuse_missing
from evaluation.fold import Fold
from evaluation.likelihood import likelihood
from score_flow.build import Experiment
from score_flow.options import EvalOptions


def check(run: Experiment, options: EvalOptions, workdir: Path) -> None:
    """Raise UserError without what it needs."""
    refuse_missing(run, options, workdir, "variational")


def build(context: Context) -> Fold:
    """bits/dim as the job likelihood's."""
    return likelihood(context, "variational")
