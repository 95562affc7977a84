"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239) as score_sde trains it."""

from score_flow.config.hints import Count
from score_flow.networks.ncsnpp import NCSNpp, Resblock


class DDPM(NCSNpp):
    """NCSNpp with DDPM's choices: its residual blocks, 32 groups, plain sums; 35.2 M parameters with the defaults.

    The defaults are those of CIFAR-10; channel_mult=(1, 1, 2, 2, 4, 4) for 256 x 256.
    """

    num_res_blocks: Count = 2
    resblock: Resblock = "ddpm"
    skip_rescale: bool = False
    groups: Count | None = 32


build = DDPM
