"""Speed as ratios: one command a row, `python -m benchmarks.train_step`, each printing one JSON line a measurement.

A row times ours against what it is held to, turn by turn in one run, so that a busy machine slows both.
"""
