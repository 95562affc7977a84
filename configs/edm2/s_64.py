"""EDM2-S, pixels of ImageNet 64 x 64 (Karras et al. 2024, arXiv:2312.02696, table 3).

280,210,405 parameters, the fixed waves of the time counted.

Weights    https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/edm2-img64-s-1073741-0.075.pkl
Statistics https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img64.pkl
Hardware   8 or more A100, by their README.
Expected   FID 1.58 in 63 network calls, at an average of width 0.075; 1.01 at guidance.scale=1.7 of a less
           trained XS, guidance.bad (autoguidance).
Reached    not yet reached: not run here.
"""

from configs import families


def get_config():
    return families.edm2(64, width=192, images=1024, lr=0.01)
