"""Score SDEs, flow interpolants and diffusion: one mathematics for training, sampling and likelihood.

    import score_flow as sf

    run = sf.open("runs/digits")
    images = run.sample(16)
    model = sf.Model(sf.networks.mlp(width=32), sf.paths.gvp(), sf.prediction.velocity)

This is the face of all rooms, those above this one too; nothing is loaded before it is asked for.
"""

import importlib
from typing import Any

__version__ = "0.3.0"
FIGURES = "0.2.0"  # the version since which figures are what they are: results are keyed by it, and stay good

# name -> the module that it is, or "module:what it has"
_FACE = {
    "open": "evaluation.opened.opening:open",
    "open_published": "evaluation.opened.opening:open_published",
    "Run": "evaluation.opened.run:Run",
    "Model": "score_flow.model:Model",
    "Preconditioning": "score_flow.model:Preconditioning",
    "Denoiser": "score_flow.model:Denoiser",
    "UserError": "score_flow.errors:UserError",
    "keys": "sampling.base:keys",
    "example_keys": "sampling.base:example_keys",
    "paths": "score_flow.paths",
    "networks": "score_flow.networks",
    "prediction": "score_flow.process.prediction",
    "losses": "score_flow.losses",
    "data": "score_flow.data",
    "samplers": "sampling",
    "kernels": "sampling.kernels",
}

__all__ = ["__version__", *_FACE]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    module, _, attribute = _FACE[name].partition(":")
    found = importlib.import_module(module)
    globals()[name] = getattr(found, attribute) if attribute else found
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_FACE} - {"Any", "importlib"})
