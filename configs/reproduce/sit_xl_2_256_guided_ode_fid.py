"""SiT-XL/2, ImageNet 256, ODE, guidance 1.5: FID 2.15, IS 258.09.

Source     Ma et al. 2024, arXiv:2401.08740, and the project's README.
Weights    SiT-XL-2-256.pt (7 M steps).
"""

from configs.reproduce.rows import evaluated, guided, sit_fid, sit_flow

get_config = evaluated("sit/xl_2_256", sit_fid, guided, sit_flow)
expected = {"fid.fid": (2.15, 0.1), "fid.inception_score_splits": (258.09, 4.0)}
