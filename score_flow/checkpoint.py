"""Pre-emption-safe checkpoints by orbax: the only file that imports it.

A checkpoint is `directory/<step>/` (orbax) together with `directory/<step>.manifest.json`, the sha256 of each of its
files: orbax restores a flipped bit or a zeroed page without a word. The manifest is written last and is what makes a
checkpoint exist: after a kill at any moment a directory without one is removed and the one before it is used.
"""

import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from score_flow.data.base import sha256_of
from score_flow.sharding import barrier, is_main
from score_flow.types import UserError

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every save at WARNING


class Checkpoints:
    """The checkpoints of one directory, oldest to newest; keep = 0 keeps all, else the newest `keep`.

    Items are trees of arrays saved and restored by name, so that an evaluation reads the EMA alone. `meta` is JSON.
    A reader leaves the directory as it finds it: a training run may be writing there.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 0, reader: bool = False):
        self.directory = Path(directory).resolve()
        self._keep = keep
        if not reader:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot write to {directory}: {error.strerror}.") from error
            if is_main():
                self._remove_uncommitted()
        barrier(f"open {self.directory}")
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=_Always(), cleanup_tmp_directories=not reader, create=not reader
            ),
        )
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="manifest")
        self._pending: int | None = None
        self._hashing: Future | None = None

    def steps(self) -> list[int]:
        """The committed steps, ascending."""
        return sorted(int(path.name.split(".")[0]) for path in self.directory.glob("*.manifest.json"))

    def save(self, step: int, items: dict[str, PyTree], meta: dict[str, Any], *, wait: bool = False) -> None:
        """Save in the background, or wait until it is committed. A step that is already there is left alone."""
        self.wait()
        if step in self.steps():
            return
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args), force=True)
        self._pending = step
        if wait:
            self.wait()

    def poll(self) -> None:
        """Commit a save that has finished, without waiting; call it once a loop."""
        if self._pending is not None and self._hashing is None and not self._manager.is_saving_in_progress():
            self._hashing = self._hasher.submit(self._commit, self._pending)

    def wait(self) -> None:
        """Wait until the save in progress, if any, is committed; re-raises its errors."""
        if self._pending is None:
            return
        self._manager.wait_until_finished()
        self.poll()
        self._hashing.result()
        self._pending = self._hashing = None
        barrier(f"saved {self.directory}")

    def close(self) -> None:
        """Wait, then let the directory go."""
        self.wait()
        self._hasher.shutdown()
        self._manager.close()

    def restore(self, step: int, items: dict[str, PyTree]) -> dict[str, PyTree]:
        """The named items of a step; targets are trees of arrays or jax.ShapeDtypeStructs with shardings.

        Raises UserError that names the item or the array in which the checkpoint and the targets differ.
        """
        where = self.directory / str(step)
        for name, wanted in items.items():
            if problem := _mismatch(where / name, wanted):
                raise UserError(f"checkpoint {where} does not hold what this config needs: {problem}.")
        args = {name: ocp.args.StandardRestore(target) for name, target in items.items()}
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"checkpoint {where} cannot be restored: {_line(error)}") from error
        return {name: restored[name] for name in items}

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved as `meta`."""
        return json.loads((self.directory / str(step) / "meta" / "metadata").read_text())

    def damage(self, step: int) -> str | None:
        """What is wrong with the files of a step, or None: every byte is read and hashed."""
        try:
            manifest = json.loads(self._manifest(step).read_text())
        except ValueError:
            return f"{self._manifest(step).name} cannot be read"
        found = _hashes(self.directory / str(step))
        for name in sorted(manifest | found):
            if name not in found:
                return f"{name} is missing"
            if manifest.get(name) != found[name]:
                return f"{name} has changed since it was written"
        return None

    def newest_good(self) -> int | None:
        """The newest undamaged step; damaged ones are reported on the way. Raises UserError when all are damaged."""
        steps = self.steps()
        for step in reversed(steps):
            problem = self.damage(step)
            if problem is None:
                return step
            print(
                f"checkpoint {self.directory / str(step)} is damaged ({problem}): falling back to the one before.",
                flush=True,
            )
        if steps:
            raise UserError(f"every checkpoint in {self.directory} is damaged; remove the folder to start again.")
        return None

    def delete_after(self, step: int) -> None:
        """Remove the steps beyond `step`: a run that fell back writes them again."""
        for late in [s for s in self.steps() if s > step]:
            if is_main():
                self._remove(late)
        barrier(f"cut {self.directory}")
        self._manager.reload()

    def _manifest(self, step: int) -> Path:
        return self.directory / f"{step}.manifest.json"

    def _commit(self, step: int) -> None:
        if not is_main():
            return
        temporary = self.directory / f".{step}.manifest.tmp"
        with open(temporary, "w") as file:
            json.dump(_hashes(self.directory / str(step)), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._manifest(step))
        for old in self.steps()[: -self._keep] if self._keep else []:
            self._remove(old)

    def _remove(self, step: int) -> None:
        self._manifest(step).unlink(missing_ok=True)  # first: without it the rest is only litter
        shutil.rmtree(self.directory / str(step), ignore_errors=True)

    def _remove_uncommitted(self) -> None:
        committed = {str(step) for step in self.steps()}
        for path in self.directory.iterdir():
            if path.is_dir() and path.name.split(".")[0].isdigit() and path.name not in committed:
                shutil.rmtree(path, ignore_errors=True)


class _Always(ocp.checkpoint_managers.SaveDecisionPolicy):
    """Saves happen when the training loop says so."""

    def should_save(self, step, previous_steps, *, context) -> bool:
        return True


def target(tree: PyTree, shardings: PyTree) -> PyTree:
    """The shapes, dtypes and layouts that `restore` should produce."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings)


def _mismatch(directory: Path, wanted: PyTree) -> str | None:
    """How a saved item differs from the wanted tree, by the name of the first array that does, or None."""
    if not directory.is_dir():
        return f"it has no {directory.name}"
    with ocp.StandardCheckpointer() as reader:
        saved, needed = _shapes(reader.metadata(directory).item_metadata.tree), _shapes(wanted)
    for leaf in sorted(saved | needed):
        there, here = saved.get(leaf, "absent"), needed.get(leaf, "absent")
        if there != here:
            return f"{directory.name}.{leaf} is {there} there and {here} here"
    return None


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    # Saved trees come back with tuples as lists and NamedTuples as dicts: dotted names are what both sides share.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


def _hashes(directory: Path) -> dict[str, str]:
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(directory))] = sha256_of(path)
    return found


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
