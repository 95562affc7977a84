"""SiT-XL/2, ImageNet 256, SDE, no guidance: FID 8.30.

Source     Ma et al. 2024, arXiv:2401.08740, and the project's README.
Weights    SiT-XL-2-256.pt (7 M steps).
"""

from configs.reproduce.rows import evaluated, sit_fid

get_config = evaluated("sit/xl_2_256", sit_fid)
expected = {"fid.fid": (8.3, 0.3)}
