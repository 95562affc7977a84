"""CIFAR-10, DDPM++ cont. deep, VP: FID 2.41, IS 9.68.

Source     README of score_sde, list of checkpoints (Song et al. 2021, arXiv:2011.13456, table 3).
Weights    the first of the two (the lower number): least FID during training.
"""

from configs.reproduce.rows import evaluated, fid

get_config = evaluated("vp/cifar10_ddpmpp_deep_continuous", fid)
expected = {"fid.fid": (2.41, 0.1), "fid.inception_score": (9.68, 0.15)}
