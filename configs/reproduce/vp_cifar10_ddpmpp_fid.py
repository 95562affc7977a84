"""CIFAR-10, DDPM++, VP: FID 2.78, IS 9.64.

Source     README of score_sde, list of checkpoints (Song et al. 2021, arXiv:2011.13456, table 3).
Weights    the one whose FID was the least during training.
"""

from configs.reproduce.rows import evaluated, fid

get_config = evaluated("vp/cifar10_ddpmpp", fid)
expected = {"fid.fid": (2.78, 0.1), "fid.inception_score": (9.64, 0.15)}
