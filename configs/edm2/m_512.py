"""EDM2-M, latents of ImageNet 512 x 512 (Karras et al. 2024, arXiv:2312.02696, table 2).

497,809,189 parameters, the fixed waves of the time counted.

Weights    https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/edm2-img512-m-2147483-0.100.pkl
           and Stable Diffusion's autoencoder (stabilityai/sd-vae-ft-mse), with EDM2's scales in its config.json.
Statistics https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img512.pkl
Hardware   8 or more A100, by their README.
Expected   FID 2.25 in 63 network calls, at an average of width 0.1; 2.01 at width 0.030 and
           guidance.scale=1.2 of an XS without classes, guidance.bad.
Reached    not yet reached: not run here.
"""

from configs import families


def get_config():
    return families.edm2(512, width=256, images=2048, lr=0.009, dropout=0.1)
