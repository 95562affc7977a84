"""CIFAR-10, DDPM cont., VP: FID 3.69 by the probability flow.

Source     README of score_sde, list of checkpoints (Song et al. 2021, arXiv:2011.13456, table 2).
Weights    the last of training.
"""

from configs.reproduce.rows import evaluated, fid, probability_flow

get_config = evaluated("vp/ddpm/cifar10_continuous", fid, probability_flow)
expected = {"fid.fid": (3.69, 0.1)}
