"""CIFAR-10, improved-diffusion's cifar10_uncond_vlb: 2.94 bits/dim.

Source     abstract of Nichol and Dhariwal 2021, arXiv:2102.09672.
Weights    cifar10_uncond_vlb, the published EMA.
"""

from configs.reproduce.rows import chain_bound, evaluated

get_config = evaluated("improved_diffusion/cifar10_uncond_vlb", chain_bound)
expected = {"vlb.bits_per_dim": (2.94, 0.02)}
