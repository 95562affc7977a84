"""DDPM++ cont. deep, VP, ImageNet 32 x 32 (Song et al. 2021, arXiv:2101.09258, table 2).

Source     score_flow, configs/vp/imagenet32_ddpmpp_deep_continuous.py.
Weights    imagenet32_deep_vp/checkpoints, with _likelihood, _iw and _flip behind the folder's name for what it was
           trained with; its dequantiser in flowpp_dequantizer/checkpoints. At
           https://drive.google.com/drive/folders/1gbDrVrFVSupFMRoK7HZo8aFgPvOtpmqB
Statistics imagenet32_stats.npz, in assets/stats there.
Hardware   not stated.
Expected   no figure without the likelihood weighting.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.score_flow_vp(families.imagenet32(n_iters=950_001), network=component("ncsnpp", num_res_blocks=8))
