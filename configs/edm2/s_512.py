"""EDM2-S, latents of ImageNet 512 x 512 (Karras et al. 2024, arXiv:2312.02696, table 2).

280,213,861 parameters, the fixed waves of the time counted.

Weights    https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/edm2-img512-s-2147483-0.130.pkl
           and Stable Diffusion's autoencoder (stabilityai/sd-vae-ft-mse), with EDM2's scales in its config.json.
Statistics https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img512.pkl
Hardware   8 or more A100, by their README.
Expected   FID 2.56 in 63 network calls, at an average of width 0.13; 2.23 at width 0.025 and
           guidance.scale=1.4 of an XS without classes, guidance.bad. 1.34 at 2.1 of an XS
           trained less (autoguidance).
Reached    not yet reached: not run here.
"""

from configs import families


def get_config():
    return families.edm2(512, width=192, images=2048, lr=0.01)
