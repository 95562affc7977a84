"""CIFAR-10, DDPM cont., sub-VP: FID 3.56 by the probability flow.

Source     README of score_sde, list of checkpoints (Song et al. 2021, arXiv:2011.13456, table 2).
Weights    the last of training.
"""

from configs.reproduce.rows import evaluated, fid, probability_flow

get_config = evaluated("subvp/cifar10_ddpm_continuous", fid, probability_flow)
expected = {"fid.fid": (3.56, 0.1)}
