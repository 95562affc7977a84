"""EDM2-M, pixels of ImageNet 64 x 64 (Karras et al. 2024, arXiv:2312.02696, table 3).

497,804,581 parameters, the fixed waves of the time counted.

Weights    https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/edm2-img64-m-2147483-0.060.pkl
Statistics https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img64.pkl
Hardware   8 or more A100, by their README.
Expected   FID 1.43 in 63 network calls, at an average of width 0.06.
Reached    not yet reached: not run here.
"""

from configs import families


def get_config():
    return families.edm2(64, width=256, images=2048, lr=0.009, dropout=0.1)
