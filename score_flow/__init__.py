"""Score SDEs, flow interpolants and diffusion: one mathematics for training, sampling and likelihood."""

__version__ = "0.2.0"
