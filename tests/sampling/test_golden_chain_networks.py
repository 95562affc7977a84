"""Samples, bounds and losses that improved-diffusion's networks gave on respaced chains; nothing below names a case."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling import ancestral
from sampling.guided import Thresholded
from score_flow.pretrained import base
from score_flow.process.bound import VariationalBound
from score_flow.process.grid import respace
from tests.chains import CASE, NO_TIMES, nchw, nhwc
from tests.golden_compare import Ours, compare
from tests.golden_data import golden_dir, load
from tests.paths.variants import EPS
from tests.pretrained.projects.test_improved_diffusion import converted, experiment_of, settings_of
from tests.sampling.test_golden_chains import bound_values, sample
from tests.toy_losses import of_chain

CASES = []
if (golden_dir() / f"{CASE}.json").exists():
    CASES = [row for row in load(CASE)[0]["cases"] if row["key"].startswith("net.")]


@functools.cache
def network(folder, dtype, **flags):
    """(model of some flags of the chain, parameters, condition of the first two stored examples)."""
    kept = settings_of(json.loads((folder / "config.json").read_text())["config"])
    ours, params = experiment_of(kept | flags, dtype), base.as_dtype(converted(folder)[1], dtype)
    with np.load(folder / "io.npz", allow_pickle=False) as io:
        condition = {"low_res": jnp.asarray(nhwc(io["low_res"])[:2], dtype)} if "low_res" in io else {}
        condition |= {"label": jnp.asarray(io["y"][:2], "int32")} if "y" in io else {}
    return ours.model, jax.tree.map(jnp.asarray, params), condition


@pytest.mark.slow
@pytest.mark.parametrize("row", CASES, ids=lambda row: row["key"])
def test_networks(row, monkeypatch):
    folder, key = golden_dir() / "improved_diffusion" / row["model"], row["key"]
    if not folder.exists():
        pytest.skip(f"no {folder.name}")
    arrays, ours = {k: a for k, a in load(CASE)[1].items() if k.startswith(f"{key}.")}, {}
    flags = {"noise_schedule": row["schedule"], "diffusion_steps": row["steps"]}
    for x64 in (True, False):
        with jax.enable_x64(x64):
            flags_of_time = {"rescale_timesteps": row["rescale_timesteps"]}
            model, params, condition = network(folder, "float64" if x64 else "float32", **flags, **flags_of_time)
            times = model.path.times()[list(respace(row["steps"], row["respacing"]))]
            bound = VariationalBound(model.path, tuple(times.tolist()), "range")
            denoiser = Thresholded(model.bind(params, condition), -1.0, 1.0)
            sampler = ancestral.build(0.0, 1.0, row["steps"], variance="range", respacing=row["respacing"])
            values = {"p_loop.out": sample(monkeypatch, sampler, denoiser, arrays[f"{key}.p_loop.noise"])}
            if x64:
                x0 = jnp.asarray(nhwc(arrays[f"{key}.x_start"]), float)
                bits = bound_values(monkeypatch, denoiser, bound, x0, arrays[f"{key}.bpd.noise"])
                values |= {f"bpd.{name}": value for name, value in bits.items()}
                weight = 1e-3 if row["rescale_learned_sigmas"] else 1 / len(times)
                values |= losses(model, params, bound, weight, arrays, f"{key}.loss", x0, condition)
            # A step multiplies by two exponentials of log alpha and takes the difference of two log SNR, 2 log alpha.
            log_alpha = np.log(model.path.alpha(jnp.asarray(bound.times, float)))
        # The reference's divergence adds numbers near 1 to a prior of next to nothing.
        relative = {"p_loop.out": 6 * EPS[x64] * float(np.abs(log_alpha).sum())}
        absolute = {"bpd.prior_bpd": 4 * EPS[x64] / np.log(2)}
        ours |= {
            (f"{key}.{name}", x64): Ours(nchw(value), relative.get(name, 0.0), absolute.get(name, 0.0))
            for name, value in values.items()
        }
    compare(key, arrays, ours, given=r".*\.(x_start|noise|t)")


def losses(model, params, bound, weight, arrays, key, x0, condition):
    """The hybrid loss and its two parts."""
    drawn = jnp.asarray(nhwc(arrays[f"{key}.noise"]), float), jnp.asarray(bound.times, float)[arrays[f"{key}.t"]]

    def loss(kind):
        of_kind = of_chain(kind, model, NO_TIMES, bound, weight=weight)
        return jax.jit(lambda: of_kind.at(params, x0, *drawn, condition))()

    return {"loss.loss": loss("hybrid"), "loss.mse": loss("simple"), "loss.vb": weight * loss("vlb")}
