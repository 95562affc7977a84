"""CIFAR-10, DDPM++ cont. deep, VP: 3.13 bits/dim.

Source     README of score_sde, list of checkpoints (Song et al. 2021, arXiv:2011.13456, table 2; of 9 216
           of the 10 000 test images).
Weights    the second of the two (the higher number): the last of training.
"""

from configs.reproduce.rows import bits_per_dim, evaluated

get_config = evaluated("vp/cifar10_ddpmpp_deep_continuous", bits_per_dim)
expected = {"likelihood.bits_per_dim": (3.13, 0.02)}
