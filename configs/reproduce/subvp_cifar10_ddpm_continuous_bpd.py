"""CIFAR-10, DDPM cont., sub-VP: 3.05 bits/dim.

Source     README of score_sde, list of checkpoints (Song et al. 2021, arXiv:2011.13456, table 2; of 9 216
           of the 10 000 test images).
Weights    the last of training.
"""

from configs.reproduce.rows import bits_per_dim, evaluated

get_config = evaluated("subvp/cifar10_ddpm_continuous", bits_per_dim)
expected = {"likelihood.bits_per_dim": (3.05, 0.02)}
