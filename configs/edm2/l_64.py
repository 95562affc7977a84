"""EDM2-L, pixels of ImageNet 64 x 64 (Karras et al. 2024, arXiv:2312.02696, table 3).

777,494,117 parameters, the fixed waves of the time counted.

Weights    https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/edm2-img64-l-1073741-0.040.pkl
Statistics https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img64.pkl
Hardware   8 or more A100, by their README.
Expected   FID 1.33 in 63 network calls, at an average of width 0.04.
Reached    not yet reached: not run here.
"""

from configs import families


def get_config():
    return families.edm2(64, width=320, images=1024, lr=0.008, dropout=0.1)
