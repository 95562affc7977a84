"""SiT-XL/2, ImageNet 256, SDE, guidance 1.5: FID 2.06, IS 270.27.

Source     Ma et al. 2024, arXiv:2401.08740, and the project's README.
Weights    SiT-XL-2-256.pt (7 M steps).
"""

from configs.reproduce.rows import evaluated, guided, sit_fid

get_config = evaluated("sit/xl_2_256", sit_fid, guided)
expected = {"fid.fid": (2.06, 0.1), "fid.inception_score_splits": (270.27, 4.0)}
