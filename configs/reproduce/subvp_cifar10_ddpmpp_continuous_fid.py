"""CIFAR-10, DDPM++ cont., sub-VP: FID 2.61, IS 9.56.

Source     README of score_sde, list of checkpoints (Song et al. 2021, arXiv:2011.13456, table 3).
Weights    the first of the two (the lower number): least FID during training.
"""

from configs.reproduce.rows import evaluated, fid

get_config = evaluated("subvp/cifar10_ddpmpp_continuous", fid)
expected = {"fid.fid": (2.61, 0.1), "fid.inception_score": (9.56, 0.15)}
