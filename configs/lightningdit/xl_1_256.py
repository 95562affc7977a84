"""LightningDiT-XL/1 on VA-VAE f16d32, ImageNet 256 x 256 in latents (Yao et al. 2025, arXiv:2501.01423, 800 epochs).

674,961,824 parameters, the fixed positions not counted.

Weights    lightningdit-xl-imagenet256-800ep.pt, the EMA, at
           https://huggingface.co/hustvl/lightningdit-xl-imagenet256-800ep/blob/main/lightningdit-xl-imagenet256-800ep.pt
           and the autoencoder vavae-imagenet256-f16d32-dinov2.pt with its latents_stats.pt (hustvl on Hugging Face).
Statistics VIRTUAL_imagenet256_labeled.npz of ADM, https://github.com/openai/guided-diffusion/tree/main/evaluations
Hardware   8 H800: 10 hours for 64 epochs.
Expected   FID 2.17; 1.35 at guidance 6.7 of the first 3 channels between t = 0 and 0.875; both on a grid whose times
           are shifted by 0.3, which this one's are not.
Reached    not yet reached: not run here.
"""

from configs import families


def get_config():
    return families.lightningdit(256, epochs=800)
