"""NCSNv2 (128), VE, LSUN bedroom 128 x 128 (Song and Ermon 2020, arXiv:2006.09011).

Source     score_sde, configs/ve/ncsnv2/bedroom.py.
Hardware   not stated.
Expected   no figure for this file.
Reached    not yet reached: not trained here.
"""

from configs import families
from configs.base import component


def get_config():
    return families.ncsnv2(
        families.lsun(image_size=128, batch_size=128),
        network=component("ncsnv2", resolution=128),
        sigma_max=190.0,
        n_scales=1086,
        n_corrector_steps=3,
        snr=0.095,
        ema_rate=0.9999,
    )
