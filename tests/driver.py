"""Runs main.py with a real signal at a chosen moment: python tests/driver.py KIND:NUMBER:SIGNAL FLAGS...

KIND is `step` (the training batch of that step is asked for) or `round` (so many evaluation batches were asked for).
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def arm(moment: str) -> None:
    """Send the signal to this process when the moment comes."""
    kind, number, name = moment.split(":")
    number, fire = int(number), lambda: os.kill(os.getpid(), getattr(signal, name))
    if kind == "step":
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

        def counted(self, round_number):
            seen.append(round_number)
            if len(seen) == number:
                fire()
            return examples(self, round_number)

        Context.examples = counted


if __name__ == "__main__":
    if sys.argv[1] != "none":
        arm(sys.argv[1])
    from main import main

    sys.exit(main(sys.argv[2:]))
