"""Pre-emption-safe checkpoints by orbax: the only file that imports it.

A checkpoint is `directory/<step>/` (orbax) together with `directory/<step>.manifest.json`, the sha256 of each of its
files (on a store, what that knows them by): orbax restores a flipped bit or a zeroed page without a word. The manifest
is written last, once all else is whole and on the disk, and is what makes a checkpoint exist: after a kill or a full
disk at any moment a directory without one is removed and the one before it is used.
"""

import contextlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from score_flow import __version__
from score_flow.errors import UserError
from score_flow.runs import manifest, s3, stores
from score_flow.runs.files import cannot_write, first_line, reason, sync, write_whole
from score_flow.runs.places import Place, make_folder, on_store, place_of, read, remove, resolved
from score_flow.runs.processes import barrier, decided, gathered, is_main
from score_flow.runs.sharding import laid_out, replicated

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax prints what it raises, and every save

FOLDERS = ("checkpoints-meta", "checkpoints")  # of a workdir: resumable states, milestones
LARGE = 1 << 20  # bytes of an array from which on each process reads a part of it


class Checkpoints:
    """The checkpoints of one directory, oldest to newest; keep = 0 keeps all, else the newest `keep`.

    Items are trees of arrays saved and restored by name, so that an evaluation reads the EMA alone. `meta` is JSON.
    Nothing is written before `prepare` or the first save: a training run may be writing here, or this be refused.
    All processes ask together, and get one answer: the main one reads.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 0):
        self.directory = resolved(directory)
        if str(self.directory).startswith(s3.S3):
            s3.teach()
        self._keep, self._prepared = keep, False
        self.spared: int | None = None  # a step that stays though it is none of the newest
        if self.directory.exists() and not self.directory.is_dir():
            raise UserError(f"{self.directory} is a file, where checkpoints belong: move it away.")
        options = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=self.directory.name)
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=options)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="manifest")
        self._pending: Future | None = None

    def prepare(self) -> None:
        """Make the directory, and remove what a kill left behind; raises UserError where that cannot be."""
        if self._prepared:
            return
        if is_main():
            try:
                make_folder(self.directory)
            except OSError as error:
                raise cannot_write(self.directory, error) from error
            self._remove_uncommitted()
        barrier(f"open {self.directory}")
        self._prepared = True

    def steps(self) -> list[int]:
        """Return the committed steps, ascending."""
        return decided(f"steps in {self.directory}", lambda: manifest.steps(self.directory))

    def save(self, step: int, items: dict[str, PyTree], meta: dict[str, Any], *, wait: bool = False) -> None:
        """Save in the background, or wait until it is committed. A step that is already there is left alone.

        Raises UserError, here or in the next call, when the files cannot be written: none of the step is left then.
        """
        self.wait()
        self.prepare()
        if step in self.steps():
            return
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        args["meta"] = ocp.args.JsonSave({"version": __version__} | meta | {"step": step})
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        with self._told(step, size):
            where, args = self.directory / str(step), ocp.args.Composite(**args)
            gathered(f"saving {where}", lambda: self._orbax.save(where, args=args, force=True))
        self._pending = self._worker.submit(self._commit, step, list(items), size)
        if wait:
            self.wait()

    def poll(self) -> None:
        """Raise what a save in the background met, without waiting for it; call it once a loop."""
        if self._pending is not None and self._pending.done() and (error := self._pending.exception()):
            self._pending = None
            raise error

    def wait(self) -> None:
        """Wait until the save in progress, if any, is committed; raises what it met."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        pending.result()

    def close(self) -> None:
        """Wait, then let the directory go."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()
            with contextlib.suppress(Exception):  # of a save that failed, which was said
                self._orbax.close()

    def restore(self, step: int, items: dict[str, PyTree]) -> dict[str, PyTree]:
        """Load the named items of a step; targets are trees of arrays or jax.ShapeDtypeStructs with shardings.

        A process reads its share of an array also where it then has more of it. Raises UserError that names the item
        or the array in which the checkpoint and the targets differ.
        """
        where, args = self.directory / str(step), {}
        for name, wanted in items.items():
            saved = _saved(where / name)
            if problem := _mismatch(name, saved, wanted):
                raise UserError(f"checkpoint {where} does not hold what this config needs: {problem}.")
            args[name] = ocp.args.StandardRestore(_divided(wanted, saved))
        try:
            restored = self._orbax.restore(where, args=ocp.args.Composite(**args))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"checkpoint {where} cannot be restored: {first_line(error)}") from error
        return _spread({name: restored[name] for name in items}, items)

    def layout(self, step: int, item: str) -> PyTree:
        """Return the shapes and dtypes of what an item holds, in dicts and lists: what `restore` takes, whatever it is.

        Raises UserError without the item.
        """
        where = self.directory / str(step) / item
        if not where.is_dir():
            raise UserError(f"checkpoint {where.parent} has no {item}.")
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), _metadata(where))

    def meta(self, step: int) -> dict[str, Any]:
        """Read what was saved as `meta`, the `step`, and the program's `version`, which older ones do not say."""
        where = self.directory / str(step)
        return decided(f"meta of {where}", lambda: json.loads(read(where / manifest.META)))

    def digest(self, step: int) -> str:
        """Return the name of what a step holds; raises UserError where its manifest cannot be read."""
        where = manifest.path_of(self.directory, step)
        if (files := decided(f"digest of {where}", lambda: manifest.read(self.directory, step))) is None:
            raise UserError(f"{where} cannot be read.")
        return manifest.digest(files)

    def damage(self, step: int) -> str | None:
        """Return what is wrong with the files of a step, or None: every byte is read and hashed."""
        return manifest.damage(self.directory, step)

    def newest_good(self) -> int | None:
        """Find the newest undamaged step; damaged ones are said on the way. Raises UserError when all are damaged."""
        return next((step for _, step in good_states(self)), None)

    def delete_after(self, step: int) -> None:
        """Remove the steps beyond `step`: a run that fell back writes them again."""
        self.delete([s for s in self.steps() if s > step])

    def delete(self, steps: Iterable[int]) -> None:
        """Remove these steps."""
        barrier(f"cut {self.directory}")  # the other processes have looked at them
        for step in steps:
            if is_main():
                self._remove(step)
        barrier(f"was cut {self.directory}")

    def _commit(self, step: int, items: list[str], size: int) -> None:
        """Write the manifest of a save once all of it is whole and on the disk; then remove what it replaces."""
        directory = self.directory / str(step)
        with self._told(step, size):
            # An error of orbax or of a disk, on whichever process, goes to all of them.
            gathered(f"written {directory}", self._orbax.wait_until_finished)
            decided(f"synced {directory}", lambda: None if on_store(directory) else self._sync(directory))
            files = manifest.hashes(directory)
            decided(f"committed {directory}", lambda: self._sign(step, files, items))
        steps = manifest.steps(self.directory) if is_main() and self._keep else []
        for old in steps[: -self._keep]:
            if old not in (step, self.spared):
                self._remove(old)

    def _sync(self, directory: Place) -> None:
        for path in [*directory.rglob("*"), directory, self.directory]:
            sync(path)

    def _sign(self, step: int, files: dict[str, str], items: list[str]) -> None:
        """Write the manifest of a step that is whole."""
        if missing := manifest.lacking(files, items):
            raise OSError(f"{missing} is missing")
        write_whole(manifest.path_of(self.directory, step), json.dumps(files))
        if manifest.read(self.directory, step) != files:
            raise OSError("its manifest does not read back")

    @contextlib.contextmanager
    def _told(self, step: int, size: int) -> Iterator[None]:
        """Turn what the file system answers into one line, and leave none of the step behind."""
        try:
            yield
        except Exception as error:
            _join_writers()
            if is_main():
                remove(manifest.path_of(self.directory, step))
                self._remove_uncommitted()
            known = isinstance(error, OSError | ValueError | RuntimeError) or stores.is_answer(error)
            if known or reason(error):  # orbax wraps as it likes
                raise cannot_write(self.directory / str(step), error, size) from error
            raise

    def _remove(self, step: int) -> None:
        remove(manifest.path_of(self.directory, step))  # first: without it the rest is only litter
        remove(self.directory / str(step))

    def _remove_uncommitted(self) -> None:
        committed = {str(step) for step in manifest.steps(self.directory)}
        for path in self.directory.iterdir() if self.directory.is_dir() else ():
            unsigned = path.name.split(".")[0].isdigit() and path.name not in committed and path.is_dir()
            if unsigned or re.fullmatch(r"\.\d+\.manifest(\.json)?\.tmp", path.name):
                remove(path)


def _join_writers() -> None:
    """Wait for the threads in which orbax still writes what else belonged to a save that failed."""
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("orbax.") or thread.name == "async_save":
            with contextlib.suppress(Exception):  # it raises what it met, which is the same again
                thread.join(60)


def newest_step(workdir: str | os.PathLike) -> int | None:
    """Find the newest step that was saved in a workdir, by names alone: jax may be past answering."""
    return max((step for name in FOLDERS for step in manifest.steps(place_of(workdir) / name)), default=None)


def good_states(
    *folders: Checkpoints, first: tuple[Checkpoints, int] | None = None
) -> Iterator[tuple[Checkpoints, int]]:
    """Return the undamaged states of all folders, newest first; each damaged one is said in a line on the way.

    first: the one to look at before the others. Raises UserError when there are states and all are damaged.
    """
    states, good = [(folder, step) for folder in folders for step in folder.steps()], False
    for folder, step in sorted(states, key=lambda state: (state != first, -state[1])):
        if problem := folder.damage(step):
            refused(folder, step, f"is damaged ({problem})")
        else:
            good = True
            yield folder, step
    if states and not good:
        raise UserError(
            f"every checkpoint in {' and '.join(str(folder.directory) for folder in folders)} is damaged; "
            "remove the folder to start again."
        )


def refused(folder: Checkpoints, step: int, why: str) -> None:
    """Say in one line that a state is not used."""
    if is_main():
        print(f"checkpoint {folder.directory / str(step)} {why}: falling back to the one before.", flush=True)


def target(tree: PyTree, shardings: PyTree) -> PyTree:
    """Return the shapes, dtypes and layouts that `restore` should produce."""
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings)


def _divided(wanted: PyTree, saved: dict[str, Any]) -> PyTree:
    """Lay large arrays over all processes as they were saved in parts, so that each part is read by one of them."""

    def layout(path: Any, leaf: Any) -> Any:
        at, written = getattr(leaf, "sharding", None), saved[_name(path)].storage
        if not isinstance(at, NamedSharding) or leaf.size * leaf.dtype.itemsize < LARGE or not written:
            return leaf
        parts = [n // part for n, part in zip(leaf.shape, written.chunk_shape, strict=True)]
        axis = max(range(leaf.ndim), key=parts.__getitem__)
        if parts[axis] == 1 or leaf.shape[axis] % at.mesh.size:
            return leaf
        split = NamedSharding(at.mesh, PartitionSpec(*[None] * axis, at.mesh.axis_names))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split)

    return jax.tree_util.tree_map_with_path(layout, wanted) if jax.process_count() > 1 else wanted


def _spread(restored: PyTree, wanted: PyTree) -> PyTree:
    """Lay out as wanted what was read as `_divided` says: the processes get it from each other."""
    leaves, structure = jax.tree.flatten(restored)
    layouts = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(wanted)]
    moved = [i for i, layout in enumerate(layouts) if layout is not None and leaves[i].sharding != layout]
    if moved:
        found = laid_out([leaves[i] for i in moved], [layouts[i] for i in moved])
        for i, leaf in zip(moved, found, strict=True):
            leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def _saved(directory: Place) -> dict[str, Any] | None:
    """The name, shape and parts of each array of a saved item, or None without one."""
    return named(_metadata(directory)) if directory.is_dir() else None


def _metadata(directory: Place) -> PyTree:
    with ocp.StandardCheckpointer() as reader:
        return reader.metadata(directory).item_metadata.tree


def _mismatch(item: str, saved: dict[str, Any] | None, wanted: PyTree) -> str | None:
    """How a saved item differs from the wanted tree, by the name of the first array that does, or None."""
    if saved is None:
        return f"it has no {item}"
    return next((f"{item}.{said}" for said in differing(saved, named(wanted)).values()), None)


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """Say what is on both sides of each name whose arrays have two shapes, or that one side has not."""
    found = {}
    for name in sorted({**there, **here}):
        old, new = (tuple(leaves[name].shape) if name in leaves else "absent" for leaves in (there, here))
        if old != new:
            found[name] = f"{name} is {old} there and {new} here"
    return found


def placed(layout: PyTree, at: Mapping[str, NamedSharding], mesh: Mesh) -> PyTree:
    """Return the shapes of what a checkpoint holds, laid out by their dotted names; the others whole everywhere."""

    def of(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at.get(_name(path), replicated(mesh)))

    return jax.tree_util.tree_map_with_path(of, layout)


def named(tree: PyTree) -> dict[str, Any]:
    """Return the leaves of a tree by their dotted names, those that `restore` speaks of."""
    # Saved trees come back with tuples as lists and NamedTuples as dicts: dotted names are what both sides share.
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
