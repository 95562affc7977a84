"""SiT-XL/2, linear path, velocity, ImageNet 256 x 256 in latents (Ma et al. 2024, arXiv:2401.08740, table 1).

674,834,720 parameters, the fixed positions not counted.

Weights    SiT-XL-2-256.pt, the EMA, at
           https://www.dl.dropboxusercontent.com/scl/fi/as9oeomcbub47de5g4be0/SiT-XL-2-256.pt?rlkey=uxzxmpicu46coq3msb17b9ofa&dl=0
           (the address in SiT's download.py), and the autoencoder stabilityai/sd-vae-ft-ema or -mse of Hugging Face.
Statistics VIRTUAL_imagenet256_labeled.npz of ADM, https://github.com/openai/guided-diffusion/tree/main/evaluations
Hardware   not stated.
Expected   FID 2.06, IS 270.27 (SDE), 2.15 (ODE) at guidance 1.5; 8.3 without guidance after 7 M steps.
Reached    not yet reached: not trained here.
"""

from configs import families


def get_config():
    return families.sit(256, width=1152, depth=28, num_heads=16)
