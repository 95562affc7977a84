"""What a run saves and goes on from: resumable states and milestones."""

import json
import time
from collections.abc import Callable
from typing import Any

from score_flow.config.loading import differences
from score_flow.config.options import Config
from score_flow.errors import UserError
from score_flow.runs.checkpoint import FOLDERS, Checkpoints, differing, good_states, named, refused
from score_flow.runs.places import Place, place_of
from score_flow.runs.processes import Ahead, decided, is_main
from score_flow.runs.sharding import to_host
from score_flow.training import history
from score_flow.training.accepting import FIXED, accepted, as_saved, going_on
from score_flow.training.faults import Faults, warn, without_remedy
from score_flow.training.flat import tree_of
from score_flow.training.history import History
from score_flow.training.recorder import Recorder
from score_flow.training.restoring import items, restored
from score_flow.training.starting import refuse_begun
from score_flow.training.steps import Metrics, TrainState, all_finite, check_state, crossed
from score_flow.types import Params

# (step, EMA parameters) -> the file of a sheet of samples, None where this process wrote none
Snapshot = Callable[[int, Params], Place | None]


class Saver:
    """The hook that saves: resumable states in checkpoints-meta/ (newest two), milestones in checkpoints/ (all)."""

    def __init__(
        self,
        workdir: Place,
        config: Config,
        snapshot: Snapshot,
        *,
        facts: dict[str, Any] | None = None,
        faults: Faults | None = None,
    ):
        """facts: of the data set, kept in every checkpoint as meta["data"]; faults: kept in it too."""
        self.faults = faults or Faults()
        self.meta = Checkpoints(workdir / "checkpoints-meta", keep=2)
        self.milestones = Checkpoints(workdir / "checkpoints")
        self.recorder: Recorder | None = None
        self.asked = Ahead(save=self.due)  # or what the loop asks, with this among it
        self._snapshot, self._options = snapshot, config.training
        self._since = time.monotonic()  # the last save began, or was asked for
        self._saved = {"config": as_saved(config), "weights": {"raw": "raw", "ema": "ema"}}
        self._saved |= {"data": facts} if facts else {}

    def __call__(self, previous: int, step: int, state: TrainState, metrics: Metrics) -> None:
        self.meta.poll()
        self.milestones.poll()
        if step == self._options.n_iters:
            return  # finish() saves
        if crossed(self._options.snapshot_freq, previous, step):
            self._save(self.milestones, step, state, by_steps=True)
            self._draw(step, state)
        elif crossed(self._options.snapshot_freq_for_preemption, previous, step):
            self._save(self.meta, step, state, by_steps=True)
        elif self.asked.answers["save"]:
            self._save(self.meta, step, state)

    def due(self) -> bool:
        """Say, by the clock of the main process, whether a state is to be saved now; once for each time that it is."""
        minutes, now = self._options.save_minutes, time.monotonic()
        late = is_main() and minutes > 0 and now - self._since >= 60 * minutes
        self._since = now if late else self._since
        return late

    def finish(self, step: int, state: TrainState, milestone: bool) -> None:
        """Save the state that training ends with, and wait for it."""
        freqs = self._options.snapshot_freq, self._options.snapshot_freq_for_preemption
        by_steps = any(freq and step % freq == 0 for freq in freqs)
        self._save(self.milestones if milestone else self.meta, step, state, by_steps=by_steps, wait=True)
        if milestone:
            self._draw(step, state)

    def resume(
        self,
        config: Config,
        begin: Callable[[], TrainState],
        shapes: TrainState,
        shardings: TrainState,
        fixed: tuple[str, ...] = FIXED,
        warm: Callable[[], tuple[TrainState, History]] | None = None,
        first: tuple[Checkpoints, int] | None = None,
    ) -> tuple[int, TrainState]:
        """Return the step to go on from and its state: the newest good one of both folders, or (0, begin()).

        warm: begins in place of `begin` with weights of another run; they are saved at once, so that nothing asks for
        them again. first: the state to look at before the others. A damaged or non-finite state is said and passed
        over. Raises UserError for a checkpoint of another config, naming both values, unless that is accepted, and when
        there are states and none is good.
        """
        accepted(config, fixed)  # a mistake in it is said before any work
        step = None
        for checkpoints, step in good_states(self.meta, self.milestones, first=first):
            self._look_back(checkpoints, step, config, shapes, fixed)
            state = restored(checkpoints, step, begin, shapes, shardings, config.model)
            if to_host(all_finite(state)):
                self.faults.found(checkpoints.meta(step), step)
                self._cut(checkpoints, step)
                history.write(self.meta.directory.parent, self._saved["history"])
                return step, state
            refused(checkpoints, step, "holds numbers that are not finite")
        if step is not None:
            raise UserError(f"no checkpoint in {self.meta.directory.parent} is finite: use another --workdir.")
        state, self._saved["history"] = warm() if warm else (begin(), {})
        for folder in (self.meta, self.milestones):
            folder.prepare()
        if warm:
            self.meta.save(0, items(state), self._saved, wait=True)
            history.write(self.meta.directory.parent, self._saved["history"])
        return 0, state

    def go_back(
        self, why: str, begin: Callable[[], TrainState], resume: Callable[..., tuple[int, TrainState]]
    ) -> tuple[int, TrainState]:
        """Return the step and the state to go back to after a step that was not finite, and count it; says why.

        It is one whose step the config decides, or the beginning: so an interrupted run goes back to the same. resume:
        `resume` with its arguments. Raises NonFinite where that was tried before, too often.
        """
        for folder in (self.meta, self.milestones):
            folder.wait()
        step, count = self.faults.back_to, self.faults.rollbacks
        folder = next((each for each in (self.milestones, self.meta) if step in each.steps()), None)
        self.faults.refuse_another(why, folder.meta(step).get("faults", {}).get("rollbacks", 0) if folder else 0)
        if step or folder:
            step, state = resume(first=folder and (folder, step))
        else:
            self._cut(None, 0)
            self.faults.found({}, 0)
            state = begin()
        self.faults.rollbacks = count + 1
        warn(f"{without_remedy(why)}: back to step {step}, with other batches and noise (rollback {count + 1}).")
        return step, state

    def _look_back(
        self, checkpoints: Checkpoints, step: int, config: Config, shapes: TrainState, fixed: tuple[str, ...]
    ) -> None:
        """Compare a state's settings with those of now, say what is otherwise, and keep it in the run's history."""
        meta, workdir = checkpoints.meta(step), self.meta.directory.parent
        past = history.of_state(meta)
        refuse_begun(workdir, config, past)

        def unfit() -> str | None:
            saved, wanted = checkpoints.layout(step, "params"), shapes.params
            return next(iter(differing(named(saved), named(wanted)).values()), None)

        facts, where = self._saved.get("data"), checkpoints.directory
        changes = going_on(meta, config, facts, sections=fixed, where=where, unfit=unfit)
        if changes and is_main():
            print(f"from step {step} on: {'; '.join(map(str, changes))}", flush=True)
        self._saved["history"] = history.with_changes(past, step, changes)

    def close(self) -> None:
        self.meta.close()
        self.milestones.close()

    def _cut(self, checkpoints: Checkpoints | None, step: int) -> None:
        """Remove what is newer than the state that training goes on from, and what was refused at its step."""
        for folder in (self.meta, self.milestones):
            same = folder is not checkpoints and step in folder.steps() and folder.damage(step)
            folder.delete([s for s in folder.steps() if s > step or (s == step and same)])
            folder.prepare()

    def _save(
        self, checkpoints: Checkpoints, step: int, state: TrainState, *, by_steps: bool = False, wait: bool = False
    ) -> None:
        self.recorder.flush()  # a state is saved only when every step up to it was finite, or skipped,
        check_state(step, state)  # and what they left is finite
        self._since = time.monotonic()
        if by_steps:
            self.faults.saves(step)
        self.meta.spared = self.faults.kept
        checkpoints.save(step, items(tree_of(state)), self._saved | self.faults.saved(), wait=wait)

    def _draw(self, step: int, state: TrainState) -> None:
        if self._options.snapshot_sampling:
            self._snapshot(step, tree_of(state.ema[0]))


def refuse_other_config(
    saved: dict[str, Any] | None, config: dict[str, Any], sections: tuple[str, ...], where: Place
) -> None:
    """Raise UserError when a checkpoint was made with other values than a config's in the named sections."""
    if saved is None:
        raise UserError(f"{where} does not say with which config it was made: use another --workdir.")
    changed = differences(saved, config, sections)
    if changed:
        raise UserError(
            f"{where} was made with another config ({'; '.join(changed)}): change it back or use another --workdir."
        )


def remembered(workdir: str | Place) -> dict[str, Any] | None:
    """Read the facts of a run's training data off its newest state: {} where it knows none; None without any.

    What cannot be read is passed over: who uses the states themselves says what is damaged.
    """
    return decided(f"facts of {workdir}", lambda: _facts_in([place_of(workdir) / name for name in FOLDERS]))


def _facts_in(folders: list[Place]) -> dict[str, Any] | None:
    files = [file for folder in folders for file in folder.glob("*/meta/metadata")]
    steps = {file: file.parent.parent.name for file in files}
    for file in sorted((file for file in files if steps[file].isdecimal()), key=lambda f: -int(steps[f])):
        try:
            return dict(json.loads(file.read_text()).get("data") or {})
        except (OSError, ValueError, TypeError, AttributeError):
            continue
    return None
