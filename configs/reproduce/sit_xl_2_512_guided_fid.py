"""SiT-XL/2, ImageNet 512, SDE, guidance 1.5: FID 2.62, IS 252.21.

Source     Ma et al. 2024, arXiv:2401.08740, and the project's README.
Weights    SiT-XL-2-512 (3 M steps).
"""

from configs.reproduce.rows import evaluated, guided, sit_fid

get_config = evaluated("sit/xl_2_512", sit_fid, guided)
expected = {"fid.fid": (2.62, 0.1), "fid.inception_score_splits": (252.21, 4.0)}
