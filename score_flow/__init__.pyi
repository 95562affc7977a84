# What an editor and a type checker know of the face; __init__.py hands the same names on.
import sampling as samplers
from evaluation.opened.opening import open as open
from evaluation.opened.opening import open_published as open_published
from evaluation.opened.run import Run as Run
from sampling import kernels as kernels
from sampling.base import example_keys as example_keys
from sampling.base import keys as keys
from score_flow import data as data
from score_flow import losses as losses
from score_flow import networks as networks
from score_flow import paths as paths
from score_flow.model import Denoiser as Denoiser
from score_flow.model import Model as Model
from score_flow.model import Preconditioning as Preconditioning
from score_flow.process import prediction as prediction
from score_flow.types import UserError as UserError

__all__ = [
    "Denoiser",
    "Model",
    "Preconditioning",
    "Run",
    "UserError",
    "__version__",
    "data",
    "example_keys",
    "kernels",
    "keys",
    "losses",
    "networks",
    "open",
    "open_published",
    "paths",
    "prediction",
    "samplers",
]

__version__: str
FIGURES: str
