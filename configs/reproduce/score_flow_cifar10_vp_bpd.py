"""CIFAR-10, score_flow's DDPM++ cont., VP, likelihood weighting by importance: 2.83 bits/dim.

Source     abstract of Song et al. 2021, arXiv:2101.09258 (NeurIPS): variational dequantisation, no augmentation.
Weights    cifar10_vp_likelihood_iw; its dequantiser by --mode=train_deq.
"""

from configs.reproduce.rows import bits_per_dim, evaluated, likelihood_training, variational

get_config = evaluated("score_flow/vp/cifar10_ddpmpp_continuous", likelihood_training, bits_per_dim, variational)
expected = {"likelihood.bits_per_dim": (2.83, 0.02)}
