"""The kernels of score_sde's presets, by its settings."""

from sampling.base import Kernel
from sampling.predictor_corrector import kernel
from sampling.published import PublishedChain


def published(chain: str, n: int) -> PublishedChain | None:
    """The chain of a name, none of an empty one."""
    return PublishedChain(chain, n) if chain else None


def predict(name: str, chain: str = "", n: int = 0, probability_flow: bool = False) -> Kernel:
    """The predictor of a name, of n published steps, or between the times of its grid."""
    return kernel("predictor", name, chain=published(chain, n), probability_flow=probability_flow)


def correct(name: str, snr: float, chain: str = "", n: int = 0, norms: str = "example") -> Kernel:
    """The corrector of a name; see `predict`."""
    return kernel("corrector", name, snr=snr, chain=published(chain, n), norms=norms)
