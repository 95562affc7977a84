"""The command in a checkout: python main.py --config=configs/digits.py --workdir=runs/digits --mode=train

Installed it is `score-flow`; what it does is in evaluation/modes/command.py.
"""

import sys

from evaluation.modes.command import EXIT_USER_ERROR, main
from evaluation.modes.table import EXIT_NOT_REPRODUCED

__all__ = ["EXIT_NOT_REPRODUCED", "EXIT_USER_ERROR", "main"]

if __name__ == "__main__":
    sys.exit(main())
