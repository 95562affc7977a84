"""What a run saves and goes on from: resumable states and milestones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from score_flow.checkpoint import Checkpoints, target
from score_flow.config import differences
from score_flow.data.compare import refuse_other_data, same_place
from score_flow.options import Config
from score_flow.record import Recorder
from score_flow.training import Metrics, TrainState, crossed
from score_flow.types import Params, UserError

# What must not change under a checkpoint; the rest (lengths, frequencies, learning rate) may.
FIXED = ("path", "network", "model", "data", "optim.optimizer", "training.batch_size", "training.time_sampler", "seed")

Snapshot = Callable[[int, Params], None]  # (step, EMA parameters): draws a sheet of samples


class Saver:
    """The hook that saves: resumable states in checkpoints-meta/ (newest two), milestones in checkpoints/ (all)."""

    def __init__(self, workdir: Path, config: Config, snapshot: Snapshot, facts: dict[str, Any] | None = None):
        """facts: of the data set, kept in every checkpoint as meta["data"]."""
        self.meta, self.milestones = (
            Checkpoints(workdir / "checkpoints-meta", keep=2),
            Checkpoints(workdir / "checkpoints"),
        )
        self.recorder: Recorder | None = None
        self._snapshot, self._options = snapshot, config.training
        self._saved = {"config": json.loads(config.to_json()), "weights": {"raw": "raw", "ema": "ema"}}
        self._saved |= {"data": facts} if facts else {}

    def __call__(self, previous: int, step: int, state: TrainState, metrics: Metrics) -> None:
        self.meta.poll()
        self.milestones.poll()
        if step == self._options.n_iters:
            return  # finish() saves
        if crossed(self._options.snapshot_freq, previous, step):
            self._save(self.milestones, step, state)
            self._draw(step, state)
        elif crossed(self._options.snapshot_freq_for_preemption, previous, step):
            self._save(self.meta, step, state)

    def finish(self, step: int, state: TrainState, milestone: bool) -> None:
        """Save the state that training ends with, and wait for it."""
        self._save(self.milestones if milestone else self.meta, step, state, wait=True)
        if milestone:
            self._draw(step, state)

    def newest(self, config: Config, fixed: tuple[str, ...] = FIXED) -> int | None:
        """The step to go on from; refuses a checkpoint of another config, naming both values."""
        found = [(c.newest_good(), c) for c in (self.meta, self.milestones)]
        found = [(step, c) for step, c in found if step is not None]
        if not found:
            return None
        step, checkpoints = max(found, key=lambda pair: pair[0])
        refuse_other_run(checkpoints.meta(step), config, self._saved.get("data"), fixed, checkpoints.directory)
        for c in (self.meta, self.milestones):
            c.delete_after(step)
        return step

    def restore(
        self, step: int, begin: Callable[[], TrainState], shapes: TrainState, shardings: TrainState
    ) -> TrainState:
        """The state at a step. Imported weights come without an optimiser: theirs is a fresh one."""
        checkpoints = self.meta if step in self.meta.steps() else self.milestones
        wanted = _items(target(shapes, shardings))
        if "imported" not in checkpoints.meta(step):
            return TrainState(**_from_items(checkpoints.restore(step, wanted)))
        weights = checkpoints.restore(step, {name: wanted[name] for name in ("params", "ema")})
        return begin().replace(step=jnp.asarray(step, jnp.int32), params=weights["params"], ema=tuple(weights["ema"]))

    def close(self) -> None:
        self.meta.close()
        self.milestones.close()

    def _save(self, checkpoints: Checkpoints, step: int, state: TrainState, wait: bool = False) -> None:
        self.recorder.flush()  # a state is saved only when every step up to it was finite
        checkpoints.save(step, _items(state), self._saved | {"step": step}, wait=wait)

    def _draw(self, step: int, state: TrainState) -> None:
        if self._options.snapshot_sampling:
            self._snapshot(step, state.ema[0])


def _items(state: TrainState) -> dict:
    """The state as separately restorable items."""
    rest = {"opt_state": state.opt_state, "time_state": state.time_state, "step": state.step}
    return {"params": state.params, "ema": list(state.ema), "train": rest}


def _from_items(items: dict) -> dict:
    return {"params": items["params"], "ema": tuple(items["ema"]), **items["train"]}


def refuse_other_run(
    meta: dict, config: Config, facts: dict[str, Any] | None, sections: tuple[str, ...], where: Path
) -> None:
    """Raise UserError when a checkpoint was made with other data or with other values in the named sections.

    Of the data, by their facts, the content decides, and not where they lie.
    """
    saved = meta["config"]
    if facts:
        refuse_other_data(meta.get("data"), facts, str(where))
        saved = same_place(saved, json.loads(config.to_json()), known="data" in meta)
    refuse_other_config(saved, config, sections, where)


def refuse_other_config(saved: dict, config: Config, sections: tuple[str, ...], where: Path) -> None:
    """Raise UserError when a checkpoint was made with other values than the config's in the named sections."""
    changed = differences(saved, json.loads(config.to_json()), sections)
    if changed:
        raise UserError(
            f"{where} was made with another config ({'; '.join(changed)}): change it back or use another --workdir."
        )


def remembered(workdir: Path) -> dict[str, Any] | None:
    """The facts of the data that a run was trained on, by its newest state: {} where it knows none; None without any.

    What cannot be read is passed over: who uses the states themselves says what is damaged.
    """
    folders = [workdir / name for name in ("checkpoints-meta", "checkpoints")]
    files = [file for folder in folders for file in folder.glob("*/meta/metadata")]
    steps = {file: file.parent.parent.name for file in files}
    for file in sorted((file for file in files if steps[file].isdecimal()), key=lambda f: -int(steps[f])):
        try:
            return dict(json.loads(file.read_text()).get("data") or {})
        except (OSError, ValueError, TypeError, AttributeError):
            continue
    return None
