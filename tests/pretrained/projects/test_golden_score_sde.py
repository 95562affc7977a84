"""Every stored output of score_sde's networks, in torch and in flax, from their checkpoints through the importer."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.networks.blocks import layers
from score_flow.process.prediction import scaled_score
from tests.discover import thinned
from tests.golden_data import golden_dir, load, some
from tests.pretrained.imported import Compiled, Imported, allowed, nhwc, relative_error

FOLDERS = ("score_sde/models", "score_sde/models_jax")
FILES = [f for folder in FOLDERS for f in sorted(golden_dir().glob(f"{folder}/*.npz"))]
CASES = [str(f.relative_to(golden_dir()).with_suffix("")) for f in FILES]
OUTPUT = re.compile(r"(out|score_(?P<sde>\w+sde)_(?P<kind>cont|disc))(?P<ema>_ema)?(?P<x64>_?64)?(?P<jaxvar>_jaxvar)?")


def checkpoint(case):
    return next(f for suffix in (".pth", ".msgpack") if (f := (golden_dir() / case).with_suffix(suffix)).exists())


def times_of(labels, model):
    """The times at which a model tells its network the labels (the source's log of a noise level is ours)."""
    p = model.preconditioning
    if p.time == "log_sigma":
        return jnp.log(labels / model.path.sigma_min) / np.log(model.path.sigma_max / model.path.sigma_min)
    t = (labels - p.time_shift) / p.time_scale
    return 1 - t if p.time == "1-t" else t


def network_output(model, params, x, labels):
    """What the source calls the network: ours, divided by sigma where theirs divides."""
    t = times_of(labels, model)
    raw = model.apply(params, x, t)
    return raw / model.path.sigma(t)[:, None, None, None] if model.prediction is scaled_score else raw


def score(model, params, x, t, discrete, n):
    """get_score_fn at their t, by our Denoiser."""
    denoiser = model.bind(params)
    if not discrete or type(model.path).__name__ == "SubVP":
        return denoiser.score(x, t)
    if type(model.path).__name__ == "VE":  # their level is the nearest
        return denoiser.score(x, 1 - jnp.round((1 - t) * (n - 1)) / (n - 1))
    # Their network sees the fractional step t (n - 1), their sigma is that of its floor; ours is that of the step.
    step = t * (n - 1)
    noise = denoiser.estimate(x, (step + 1) / n).noise
    return -noise / model.path.sigma((jnp.floor(step) + 1) / n)[:, None, None, None]


def float32_frequencies(time, half, divisor):
    """layers._angles as the flax original has it: the frequencies are float32 even in its float64 run."""
    with jax.ensure_compile_time_eval():  # as there, not folded by the compiler: that differs in the last place
        frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * -(math.log(layers.MAX_PERIOD) / divisor))
    return time[:, None] * frequencies


@pytest.mark.parametrize("x64", thinned([True, False], 2), ids=["float64", "float32"])
@pytest.mark.parametrize("case", some(CASES, 9))
def test_every_stored_output(case, x64, monkeypatch):
    description, arrays = load(case)
    flax = "x_nhwc" in arrays
    if flax:
        monkeypatch.setattr(layers, "_angles", float32_frequencies)
    with jax.enable_x64(x64):
        dtype = "float64" if x64 else "float32"
        imported = Imported(checkpoint(case), description["config"], dtype, "float32 frequencies" if flax else "")
        images = np.moveaxis(arrays["x_nhwc"], -1, 1) if flax else arrays["x"]
        x, off, compared = nhwc(images, dtype), [], 0
        weights = {}
        for name, reference in arrays.items():
            parts = OUTPUT.fullmatch(name)
            if not parts or bool(parts["x64"]) != x64:
                continue
            changes = {"training": {"sde": parts["sde"], "continuous": parts["kind"] == "cont"}} if parts["sde"] else {}
            model = imported.model(**changes)
            if parts["jaxvar"]:
                model = biased(model)
            kind = "ema" if parts["ema"] else "raw"
            if kind not in weights:
                weights[kind] = imported.params(model, kind)
            if parts["sde"]:
                n = description["config"]["model"]["num_scales"]
                ours = score(model, weights[kind], x, jnp.asarray(arrays["t"], dtype), parts["kind"] == "disc", n)
            else:
                ours = network_output(model, weights[kind], x, jnp.asarray(arrays["labels"], dtype))
            reference = np.moveaxis(reference, -1, 1) if flax else reference
            double = re.sub(r"_ema$", "", name) + "64" if not x64 else name
            error, most = relative_error(ours, reference), allowed(name, arrays, double)
            print(f"{error:9.1e} of {most:.1e}  {case} {name}")
            compared += 1
            if not error <= most:
                off.append(f"{name}: {error:.1e}, allowed {most:.1e}")
        assert compared and not off


def biased(model):
    network = model.network.inner.clone(unbiased=False)
    return model.__class__(Compiled(network), model.path, model.prediction, model.preconditioning)
