"""What the recipes of one project share; no recipe by themselves.

A recipe is its docstring and one call of these functions, whose arguments say what is particular to it. Each returns
the whole config: the get_config() of your copy of a recipe goes on from there, a line for each field,

    config = families.vp(families.cifar10(), network=component("ncsnpp", dropout=0.1))
    config.training.batch_size = 64
    return config
"""

from configs.families.chain import iddpm, iddpm_imagenet, iddpm_lsun, improved_diffusion
from configs.families.edm2 import edm2
from configs.families.interpolant import sit
from configs.families.sde import (
    celeba,
    cifar10,
    ddpm_256,
    imagenet32,
    lsun,
    ncsn,
    ncsnv2,
    score_flow,
    score_flow_subvp,
    score_flow_vp,
    score_sde,
    subvp,
    ve,
    ve_256,
    ve_1024,
    ve_discrete,
    vp,
    vp_discrete,
)
from configs.families.transformer import jit, lightningdit

__all__ = [
    "celeba", "cifar10", "ddpm_256", "edm2", "iddpm", "iddpm_imagenet", "iddpm_lsun", "imagenet32",
    "improved_diffusion", "jit", "lightningdit", "lsun", "ncsn", "ncsnv2", "score_flow",
    "score_flow_subvp", "score_flow_vp", "score_sde", "sit", "subvp", "ve", "ve_256", "ve_1024", "ve_discrete",
    "vp", "vp_discrete",
]  # fmt: skip
