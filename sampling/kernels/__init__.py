"""Steps of chains, one a file: sampling.kernels.euler.predictor() is that of euler.py, of others a corrector."""

from score_flow.config import packages

packages.of_plug_ins(__name__)
