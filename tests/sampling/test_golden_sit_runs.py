"""What else SiT's runs gave: all states of a trajectory, samples and losses of a network.

Nothing below names a case; see test_golden_sit_samplers and test_golden_transport for the conventions.
"""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling import base
from sampling import reverse_sde as sde
from sampling.flow import Solver, flow
from sampling.guided import ClassifierFree, Extrapolation
from sampling.sde import build
from score_flow.model import Denoiser, Model
from score_flow.process.prediction import PREDICTIONS
from score_flow.process.prediction import velocity as velocity_prediction
from score_flow.process.times import uniform
from tests.golden_compare import Ours, compare
from tests.golden_data import golden_dir, load
from tests.pretrained.imported import Imported
from tests.pretrained.projects.test_golden_sit import IN_CHANNELS_GUIDED, Theirs
from tests.sampling.test_golden_likelihoods import log_p
from tests.sampling.test_golden_sit_samplers import ODE_METHODS, SDE_METHODS, arrays_of, denoiser_of, ends, feed
from tests.sampling.test_golden_transport import INTERPOLANTS
from tests.toy_losses import denoising

FOLDER, LOSSES = "sit/samplers", "sit/transport/transport"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (golden_dir() / FOLDER).is_dir(), reason="not in the committed subset"),
]


def rows_of(mode, network):
    if not (golden_dir() / FOLDER).is_dir():
        return []
    rows = load(f"{FOLDER}/samplers")[0]["cases"]
    return [row for row in rows if row["mode"] == mode and ("checkpoint" in row) == network]


def states(row, arrays, monkeypatch):
    """Every state of a run: an ODE's with the first, an SDE's without it and with the last step."""
    t_min, t_max = ends(row)
    n, denoiser, x = row["num_steps"] - 1, denoiser_of(row, arrays), jnp.asarray(arrays["x"], float)
    if row["mode"] == "ode":
        # Backwards VP starts at the data, where sigma' is infinite: ours starts a hair later.
        start, end = (
            ((1e-12, t_max - t_min) if row["path"] == "VP" else (0.0, 1.0)) if row["reverse"] else (t_max, t_min)
        )
        solver = Solver(ODE_METHODS[row["method"]], n_steps=1, per_example=False)
        found, times = [x], np.linspace(start, end, n + 1).tolist()
        for t, later in itertools.pairwise(times):
            found.append(flow(denoiser, found[-1], solver, t0=t, t1=later)[0])
        return jnp.stack(found)
    w = lambda c, t: sde.DIFFUSIONS[row["diffusion_form"]](c, t, row["diffusion_norm"])  # noqa: E731
    t_end = row["last_step_size"]
    times, method = np.linspace(t_max, t_end, n + 1), SDE_METHODS[row["method"]]
    feed(monkeypatch, x, jnp.asarray(arrays[f"{row['key']}.noise"], float), (t_max - t_end) / n)
    keys = base.example_keys(0, jnp.arange(len(x)))
    found = [
        sde.reverse_sde(keys, denoiser, x, times=times[: k + 1], w=w, method=method, bound=sde.unbounded)
        for k in range(1, n + 1)
    ]
    found.append(
        sde.last(denoiser, found[-1], t_end, step=t_end, kind=row["last_step"].lower(), w=w, bound=sde.unbounded)
    )
    monkeypatch.undo()
    return jnp.stack(found)


def test_trajectories(monkeypatch):
    _, arrays = load(f"{FOLDER}/samplers")
    rows = [row for mode in ("ode", "sde") for row in rows_of(mode, False) if f"{row['key']}.all64" in arrays]
    with jax.enable_x64(True):
        ours = {}
        for row in rows:
            all_states = jax.jit(lambda row=row: states(row, arrays, monkeypatch))
            ours[f"{row['key']}.all", True] = Ours(all_states())
    compare("trajectories", {f"{row['key']}.all64": arrays[f"{row['key']}.all64"] for row in rows}, ours, "")


# A network, guided as SiT publishes it: the second half of a batch sees the states of the first, without its labels.


class Published(Denoiser):
    """Their forward_with_cfg as a denoiser."""

    def __init__(self, imported, scale, label):
        self.theirs, self.scale, self.label = Theirs(imported, "ema"), scale, label
        self.path = self.theirs.model.path

    def given(self, condition):
        return self

    def estimate(self, x, t):
        value = -self.theirs.guided(x, 1 - jnp.broadcast_to(jnp.asarray(t, x.dtype), len(x)), self.label, self.scale)
        return velocity_prediction.decode(value, x, self.path.at(jnp.asarray(t, x.dtype)).expand(x))


def halves(row, imported, label, null):
    """(denoiser, rows of the batch that it makes): ours of the first half, theirs of the second."""
    model = imported.model()
    ours = lambda label: model.bind(imported.params(model, "ema"), {"label": label})  # noqa: E731
    if "cfg_scale" not in row:
        return [(ours(label), slice(None), slice(None))]
    half, scale = len(label) // 2, row["cfg_scale"]
    guided = ClassifierFree(ours(label[:half]), null, Extrapolation(scale, channels=IN_CHANNELS_GUIDED))
    return [(guided, slice(half), slice(None)), (Published(imported, scale, label), slice(None), slice(half, None))]


def run(row, denoiser, x, noises, monkeypatch):
    """(the sample of a case, how far two solvers at its tolerance may be apart)."""
    t_min, t_max = ends(row)
    if row["mode"] == "sde":
        n, size = row["num_steps"] - 1, row["last_step_size"]
        sampler = build(
            t_min, t_max, n, method=SDE_METHODS[row["method"]],
            diffusion=row["diffusion_form"], norm=row["diffusion_norm"], last_step=row["last_step"].lower(),
            last_step_size=size, bounded=False,
        )  # fmt: skip
        feed(monkeypatch, x, noises, (t_max - size) / n)
        keys = base.example_keys(0, jnp.arange(len(x)))
        result = jax.jit(lambda keys: sampler(keys, denoiser, x.shape[1:]).x)(keys)
        monkeypatch.undo()
        return result, 0.0
    adaptive = row["method"].startswith("dopri")
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if adaptive else {"n_steps": row["num_steps"] - 1}
    solver = Solver(ODE_METHODS[row["method"]], per_example=False, **tolerance)
    x, stats = jax.jit(lambda x: flow(denoiser, x, solver, t0=t_max, t1=t_min))(x)
    return x, 2 * int(stats.n_steps[0]) * 1e-9 * (1 + float(jnp.abs(x).max())) if adaptive else 0.0


def imported_of(row, dtype):
    name = row["checkpoint"].split(".pt")[0]
    description = load(f"sit/models/{name}")[0]
    return Imported(golden_dir() / "sit/models" / f"{name}.pt", description["kwargs"], dtype), description["kwargs"]


def nhwc(array):
    return jnp.moveaxis(jnp.asarray(array, float), -3, -1)


NETWORKS = [row for mode in ("ode", "sde", "likelihood") for row in rows_of(mode, True)]


@pytest.mark.parametrize("row", NETWORKS, ids=lambda row: row["key"])
def test_networks(row, monkeypatch):
    _, arrays = load(f"{FOLDER}/samplers")
    key, known, ours = row["key"], arrays_of(arrays, [row]), {}
    adaptive = any(name.endswith("_tight64") for name in known)
    for x64 in (True,) if adaptive else (True, False):
        with jax.enable_x64(x64):
            imported, settings = imported_of(row, "float64" if x64 else "float32")
            prefix = "sit.cfg_" if "cfg_scale" in row else "sit."
            x, label = nhwc(arrays[f"{prefix}x"]), jnp.asarray(arrays[f"{prefix}y"], jnp.int32)
            parts = halves(row, imported, label, settings["num_classes"])
            if row["mode"] == "likelihood":
                solver = Solver("dopri5", 1e-9, 1e-9, per_example=False)
                probe = nhwc(arrays["sit.likelihood_const_eps"])
                value, z, steps = log_p(monkeypatch, parts[0][0], x, probe, solver, (0.0, 1.0))
                allowed = 2 * int(steps) * 1e-9 * (1 + float(jnp.abs(z).max()))
                ours[f"{key}.logp_tight", x64] = Ours(value, absolute=allowed * x[0].size)
                ours[f"{key}.z_tight", x64] = Ours(jnp.moveaxis(z, -1, 1), absolute=allowed)
                continue
            noises = nhwc(arrays[f"{key}.noise"]) if f"{key}.noise" in arrays else None
            made = []
            for denoiser, takes, keeps in parts:
                part, allowed = run(row, denoiser, x[takes], None if noises is None else noises[:, takes], monkeypatch)
                made.append(part[keeps])
            suffix = "_tight" if adaptive else ""
            ours[f"{key}.out{suffix}", x64] = Ours(jnp.moveaxis(jnp.concatenate(made), -1, 1), absolute=allowed)
    # Beside a tight run the default one is 1e-3 off and more.
    compare(key, known, ours, given=r".*\.noise" + (r"|.*\.(out|logp|z)(64)?" if adaptive else ""))


class Negated(nn.Module):
    """Their output, of a network whose output is ours: minus theirs."""

    inner: nn.Module
    num_classes: int = 0

    def apply(self, *args, **keywords):
        return -self.inner.apply(*args, **keywords)


def test_losses_of_networks():
    description, arrays = load(LOSSES)
    rows, ours = [row for row in description["cases"] if "checkpoint" in row], {}
    for row in rows:
        key = row["key"]
        _, path_name, prediction, weighting = key.split(".")
        path = INTERPOLANTS[path_name]
        default = 1e-5 if path_name == "VP" else 0.0 if prediction == "velocity" else 1e-3
        eps = row.get("train_eps", default)
        weight = "velocity" if prediction == "velocity" else {"None": "simple"}.get(weighting, weighting)
        half = 0.5 if weight == "likelihood" else 1.0
        for x64 in (True, False):
            with jax.enable_x64(x64):
                imported, _ = imported_of(row, "float64" if x64 else "float32")
                model = imported.model()
                network = model.network if prediction == "velocity" else Negated(model.network)
                start = 0.0 if path_name == "VP" else eps
                t = 1 - (jnp.asarray(arrays[f"{key}.t_uniform"], float) * (1 - eps - start) + start)
                other = Model(network, path, PREDICTIONS[prediction], model.preconditioning)
                objective = denoising(other, uniform(path, 0.0), weight)
                label = {"label": jnp.asarray(arrays["sit.y"], jnp.int32)}
                drawn = nhwc(arrays["sit.x1"]), nhwc(arrays[f"{key}.x0"]), t
                ours[f"{key}.loss", x64] = Ours(half * objective.at(imported.params(model, "ema"), *drawn, label))
    compare(LOSSES, arrays_of(arrays, rows), ours, given=r".*\.(x0|t_uniform)")
