"""EDM2-XS, latents of ImageNet 512 x 512 (Karras et al. 2024, arXiv:2312.02696, table 2).

124,713,893 parameters, the fixed waves of the time counted.

Weights    https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/edm2-img512-xs-2147483-0.135.pkl
           and Stable Diffusion's autoencoder (stabilityai/sd-vae-ft-mse), with EDM2's scales in its config.json.
Statistics https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img512.pkl
Hardware   8 or more A100, by their README.
Expected   FID 3.53 in 63 network calls, at an average of width 0.135; 2.91 at width 0.045 and
           guidance.scale=1.4 of an XS without classes, guidance.bad.
Reached    not yet reached: not run here.
"""

from configs import families


def get_config():
    return families.edm2(512, width=128, images=2048, lr=0.012)
