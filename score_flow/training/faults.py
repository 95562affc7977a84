"""Steps that are not finite: what becomes of them (config.training.non_finite), and what a run has met of them."""

import dataclasses
import math
from typing import Any

import numpy as np

from score_flow.config.options import TrainOptions
from score_flow.errors import NonFinite, UserError
from score_flow.runs.processes import is_main
from score_flow.training.steps import REMEDY

# Where even every second step were not finite, so many in a row would come once in a million: then the weights are bad.
SKIPS = 20
TRIES = 3  # rollbacks to one state: what four draws of batches and noise all meet is no accident of theirs


@dataclasses.dataclass
class Faults:
    """What a run does about steps that are not finite, and what it has met.

    All but the policy is kept in what is saved, so that an interruption changes nothing; absent there: as here.
    """

    policy: str = "stop"
    skipped: int = 0  # steps, in all
    in_a_row: int = 0  # ... of which the last so many came without a good one between
    rollbacks: int = 0
    back_to: int = 0  # the step of the state to go back to

    def met(self, step: int, loss: float, norm: float) -> bool:
        """Say whether a step, counted from 1, was finite; raises NonFinite where it ends training, or rolls it back."""
        if math.isfinite(loss) and math.isfinite(norm):
            self.in_a_row = 0
            return True
        what = f"step {step}: loss {loss:.6g}, gradient norm {norm:.6g}"
        if self.policy != "skip":
            raise NonFinite(f"{what}. {REMEDY}")
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if self.in_a_row == SKIPS:
            raise NonFinite(f"{what}, and so were the {SKIPS - 1} steps before it: no accident of a batch. {REMEDY}")
        return False

    def row(self) -> dict[str, int]:
        """Return what a row of the log says of them."""
        return {"skip": {"skipped": self.skipped}, "rollback": {"rollbacks": self.rollbacks}}.get(self.policy, {})

    def saves(self, step: int) -> None:
        """A state is saved whose step the config decides, neither a clock nor a signal: one to go back to."""
        if self.policy == "rollback":
            self.back_to = step

    @property
    def kept(self) -> int | None:
        """The step whose state stays though newer ones come."""
        return self.back_to if self.policy == "rollback" else None

    def saved(self) -> dict[str, Any]:
        """Return what is kept in a state that is saved: nothing where nothing was met."""
        values = dataclasses.asdict(self)
        del values["policy"]
        return {"faults": found} if (found := {name: value for name, value in values.items() if value}) else {}

    def found(self, meta: dict[str, Any], step: int) -> None:
        """Go on from what a state says; one that says nothing is itself the one to go back to."""
        said = meta.get("faults", {})
        for field in dataclasses.fields(self)[1:]:
            setattr(self, field.name, said.get(field.name, 0))
        self.back_to = said.get("back_to", step)

    def seed_of(self, seed: int) -> int:
        """Return the seed of batches and of training's randomness: the run's, and another after each rollback."""
        if not self.rollbacks:
            return seed
        return int(np.random.SeedSequence([seed, self.rollbacks]).generate_state(1)[0])

    def refuse_another(self, why: str, before: int) -> None:
        """Raise NonFinite where a run went back too often to a state; before: the rollbacks that it had seen itself."""
        if self.rollbacks - before >= TRIES:
            often = f"the {TRIES + 1}th time since step {self.back_to}, each with other batches and noise"
            raise NonFinite(f"{without_remedy(why)}: {often}. {REMEDY}")


def without_remedy(why: str) -> str:
    return why.removesuffix(f" {REMEDY}").removesuffix(".")


def warn(what: str) -> None:
    """Print a warning, once for all processes."""
    if is_main():
        print(f"warning: {what}", flush=True)


def refuse_uneven(options: TrainOptions) -> None:
    """Raise UserError where the states to go back to would depend on how many steps a program has."""
    k = options.n_jitted_steps
    names = ("snapshot_freq", "snapshot_freq_for_preemption")
    uneven = [name for name in names if getattr(options, name) % k]
    if options.non_finite == "rollback" and uneven:
        raise UserError(
            f"config.training.n_jitted_steps is {k}, which does not divide training.{uneven[0]} = "
            f"{getattr(options, uneven[0])}: with training.non_finite = rollback it must."
        )
