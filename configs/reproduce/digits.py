"""Digits 8 x 8, the embedded default: 1.923 bits/dim.

Source     configs/digits.py, Reached: 1.923 +- .014 on the 297 test digits. The tolerance is for another machine's
           rounding in training; the images, the noise and the probes are the same.
Weights    train them: --mode=train --config=configs/digits.py.
"""

from configs.reproduce.rows import evaluated


def bits_per_dim(config):
    config.eval.enable_bpd = True


get_config = evaluated("digits", bits_per_dim)
expected = {"likelihood.bits_per_dim": (1.923, 0.03)}
