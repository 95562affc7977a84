"""CIFAR-10, NCSN++ cont., VE: FID 2.38, IS 9.83.

Source     README of score_sde, list of checkpoints (Song et al. 2021, arXiv:2011.13456, table 3).
Weights    the one whose FID was the least during training.
"""

from configs.reproduce.rows import evaluated, fid

get_config = evaluated("ve/cifar10_ncsnpp_continuous", fid)
expected = {"fid.fid": (2.38, 0.1), "fid.inception_score": (9.83, 0.15)}
