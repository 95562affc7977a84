"""EDM2-XXL, latents of ImageNet 512 x 512 (Karras et al. 2024, arXiv:2312.02696, table 2).

1,523,167,333 parameters, the fixed waves of the time counted.

Weights    https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/edm2-img512-xxl-0939524-0.070.pkl
           and Stable Diffusion's autoencoder (stabilityai/sd-vae-ft-mse), with EDM2's scales in its config.json.
Statistics https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img512.pkl
Hardware   8 or more A100, by their README.
Expected   FID 1.91 in 63 network calls, at an average of width 0.07; 1.81 at width 0.015 and
           guidance.scale=1.2 of an XS without classes, guidance.bad. 1.25 at 2.05 of an M
           trained less (autoguidance).
Reached    not yet reached: not run here.
"""

from configs import families


def get_config():
    return families.edm2(512, width=448, images=896, lr=0.0065, dropout=0.1)
