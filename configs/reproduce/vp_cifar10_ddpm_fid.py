"""CIFAR-10, DDPM, VP: FID 3.24.

Source     README of score_sde, list of checkpoints (Song et al. 2021, arXiv:2011.13456, table 3).
Weights    the one whose FID was the least during training.
"""

from configs.reproduce.rows import evaluated, fid

get_config = evaluated("vp/ddpm/cifar10", fid)
expected = {"fid.fid": (3.24, 0.1)}
