"""EDM2-XL, latents of ImageNet 512 x 512 (Karras et al. 2024, arXiv:2312.02696, table 2).

1,119,285,925 parameters, the fixed waves of the time counted.

Weights    https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/edm2-img512-xl-1342177-0.085.pkl
           and Stable Diffusion's autoencoder (stabilityai/sd-vae-ft-mse), with EDM2's scales in its config.json.
Statistics https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img512.pkl
Hardware   8 or more A100, by their README.
Expected   FID 1.96 in 63 network calls, at an average of width 0.085; 1.85 at width 0.020 and
           guidance.scale=1.2 of an XS without classes, guidance.bad.
Reached    not yet reached: not run here.
"""

from configs import families


def get_config():
    return families.edm2(512, width=384, images=1280, lr=0.007, dropout=0.1)
