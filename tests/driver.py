"""Runs main.py with a real signal at a chosen moment: python tests/driver.py KIND:NUMBER:SIGNAL FLAGS...

KIND is `step` (the training batch of that step is asked for), `round` (so many evaluation batches were asked for),
`saving`, `hashing` or `replacing` (the state of that step is being written, is there without its manifest, is there
with it and the older one about to go), or `before` or `after` a round of an evaluation job, which NUMBER then names:
before:vlb.3:SIGKILL.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def arm(moment: str) -> None:
    """Send the signal to this process when the moment comes."""
    kind, number, name = moment.split(":")
    fire = lambda: os.kill(os.getpid(), getattr(signal, name))  # noqa: E731
    if kind in ("before", "after"):
        return arm_job(kind == "before", *number.split("."), fire)
    number = int(number)
    if kind in ("saving", "hashing", "replacing"):
        arm_save(kind, number, fire)
    elif kind == "step":
        from score_flow.data.pipeline import Batches

        call = Batches.__call__

        def batches(self, step, n_steps):
            if step <= number < step + n_steps:
                fire()
            return call(self, step, n_steps)

        Batches.__call__ = batches
    else:
        from evaluation.context import Context

        examples, seen = Context.examples, []

        def counted(self, indices):
            seen.append(indices)
            if len(seen) == number:
                fire()
            return examples(self, indices)

        Context.examples = counted


def arm_save(kind: str, step: int, fire) -> None:
    """Fire inside the save of a step: with some of its files written, while they are hashed, or after the manifest."""
    from score_flow.runs import checkpoint, manifest, places, stores

    def begun(directory):
        if places.on_store(directory):
            return any(name.startswith(f"{step}") for name in stores.listed(directory))
        return any(path.is_file() for path in directory.glob(f"{step}*/**/*"))

    if kind == "saving":
        commit = checkpoint.Checkpoints._commit

        def saving(self, saved, items, size):
            while saved == step:
                if begun(self.directory):
                    fire()
            return commit(self, saved, items, size)

        checkpoint.Checkpoints._commit = saving
    elif kind == "hashing":
        hashes = manifest.hashes

        def hashing(directory, *like):
            if directory.name == str(step):
                fire()
            return hashes(directory, *like)

        manifest.hashes = hashing
    else:
        write = checkpoint.write_whole

        def written(path, content):
            write(path, content)
            if path.name == f"{step}.manifest.json":
                fire()

        checkpoint.write_whole = written


def arm_job(before: bool, job: str, number: str, fire) -> None:
    """Fire before or after a round of a job; after it, before anything of it is saved."""
    from evaluation import fold as folds

    run_fold = folds.run

    def armed(fold, directory, what, *, restart=False):
        rounds = itertools.count()  # of this process

        def step(state):
            hit = what == job and next(rounds) == int(number)
            if hit and before:
                fire()
            state = fold.step(state)
            if hit and not before:
                fire()
            return state

        return run_fold(fold._replace(step=step), directory, what, restart=restart)

    folds.run = armed


if __name__ == "__main__":
    if sys.argv[1] != "none":
        arm(sys.argv[1])
    from main import main

    sys.exit(main(sys.argv[2:]))
