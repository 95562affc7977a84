"""Every sample that SiT's toy samplers drew, against ours fed with the noise they drew; float64.

SiT's time is mirrored: t_sit = 1 - t, its samplers run from t0 = 1 - t_max to t1 = 1 - t_min. Nothing below names a
case: settings come from the json beside the arrays. Where SiT raises or is NaN, ours is finite.
`pytest -s` prints the worst relative error of each array.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling import base, reverse_sde, sde
from sampling.flow import METHODS, Solver, flow
from score_flow.paths.base import Path
from tests.chains import every_chain
from tests.golden_compare import Ours, compare
from tests.golden_data import golden_dir, load
from tests.sampling.test_golden_transport import FORMS, INTERPOLANTS, toy_model

FOLDER = "sit/samplers"
pytestmark = pytest.mark.skipif(not (golden_dir() / FOLDER).is_dir(), reason=f"no {FOLDER}")

ODE_METHODS = {"heun2": "heun"} | {name: name for name in METHODS}
SDE_METHODS = {"Euler": "euler", "Heun": "noise_first_heun"}


def cases(mode: str) -> list:
    """The toy cases of a mode; networks are tested where they are imported."""
    if not (golden_dir() / FOLDER / "samplers.json").exists():
        return []
    return [row for row in load(f"{FOLDER}/samplers")[0]["cases"] if row["mode"] == mode and "checkpoint" not in row]


def ends(case) -> tuple[float, float]:
    """Our (t_min, t_max) of SiT's interval."""
    velocity, vp, sde = (case["prediction"] == "velocity"), case["path"] == "VP", case["mode"] == "sde"
    eps = case.get("sample_eps", 0.0 if velocity and not vp else 1e-3)
    late = not vp and (not velocity or (sde and case["diffusion_form"] == "SBDM"))  # the noise end is cut too
    return eps, 1 - eps if late else 1.0


def denoiser_of(case, arrays):
    weights = {name: jnp.asarray(arrays[f"toy_{case['prediction']}_{name}"], float) for name in "wua"}
    return toy_model(INTERPOLANTS[case["path"]], case["prediction"]).bind(weights, {"label": jnp.asarray(arrays["y"])})


def arrays_of(arrays, rows) -> dict:
    return {key: array for key, array in arrays.items() if any(key.startswith(row["key"] + ".") for row in rows)}


def feed(monkeypatch, prior, noises, step: float):
    """Make samplers draw the recorded prior and then the recorded noises: as normals, or as Brownian increments."""

    def increment(self, t0, t1=None, left=True, use_levy=False):
        return jnp.sqrt(t1 - t0) * noises[jnp.round(t0 / step).astype(int)]

    monkeypatch.setattr(Path, "prior_sample", lambda self, keys, shape, t_max=1.0: prior)
    monkeypatch.setattr(base, "normal", lambda keys, shape, fold: noises[fold])
    monkeypatch.setattr(reverse_sde.ExampleNoise, "evaluate", increment)


def sde_sample(monkeypatch, case, arrays, finite: bool = False):
    """The sample of a case; finite: with the diffusion bounded and both ends cut, where SiT gives no number."""
    t_min, t_max = (1e-3, 1 - 1e-3) if finite else ends(case)
    n_steps, last_step = case["num_steps"] - 1, str(case["last_step"]).lower()
    size = case["last_step_size"] if last_step != "none" else 0.0
    form = FORMS.get(case["diffusion_form"], case["diffusion_form"])
    sampler = sde.build(
        t_min, t_max, n_steps, method=SDE_METHODS[case["method"]], diffusion=form, norm=case["diffusion_norm"],
        last_step=last_step, last_step_size=size, bounded=finite,
    )  # fmt: skip
    x = jnp.asarray(arrays["x"], float)
    drawn = np.random.default_rng(0).standard_normal((n_steps, *x.shape))
    noises = jnp.asarray(arrays.get(f"{case['key']}.noise", drawn), float)
    feed(monkeypatch, x, noises, (t_max - max(t_min, size)) / n_steps)
    keys = base.example_keys(0, jnp.arange(len(x)))
    result = jax.jit(lambda keys: sampler(keys, denoiser_of(case, arrays), x.shape[1:]))(keys)
    monkeypatch.undo()
    return result.x


@every_chain
@pytest.mark.parametrize("method", SDE_METHODS)
def test_sde_samplers(method, every, monkeypatch):
    _, arrays = load(f"{FOLDER}/samplers")
    rows, ours, rescued = [row for row in cases("sde")[::every] if row["method"] == method], {}, []
    with jax.enable_x64(True):
        for row in rows:
            reference = arrays.get(f"{row['key']}.out64", np.nan)
            # Heun's last stage without a last step is at sigma = 0: SiT gives NaN, or what cos(pi/2) = 6e-17 makes.
            at_zero = row["method"] == "Heun" and str(row["last_step"]) == "None" and ends(row)[0] == 0.0
            if at_zero or np.isnan(reference).any():
                rescued.append(bool(np.isfinite(sde_sample(monkeypatch, row, arrays, finite=True)).all()))
            else:
                ours[f"{row['key']}.out", True] = Ours(sde_sample(monkeypatch, row, arrays))
    known = [row for row in rows if (f"{row['key']}.out", True) in ours]
    compare(f"{FOLDER} sde {method}", arrays_of(arrays, known), ours, given=r".*\.(noise|out|all64)")
    assert all(rescued)


def ode_sample(case, arrays):
    """(the end state of a case, how far two solvers at its tolerance may be apart)."""
    t_min, t_max = ends(case)
    start, end = (t_max, t_min)
    if case.get("reverse"):  # SiT leaves out eps of VP at the noise end, and starts where sigma' is infinite
        start, end = (t_min, t_max) if case["path"] == "VP" else (1 - t_max, 1 - t_min)
    method = ODE_METHODS[case["method"]]
    adaptive = f"{case['key']}.out_tight64" in arrays or method.startswith("dopri")
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if adaptive else {"n_steps": case["num_steps"] - 1}
    solver = Solver(method, per_example=False, **tolerance)
    x = jnp.asarray(arrays["x"], float)
    x, stats = jax.jit(lambda x: flow(denoiser_of(case, arrays), x, solver, t0=start, t1=end))(x)
    # Each of the steps of either leaves an error of one tolerance; both take about as many.
    return x, 2 * int(stats.n_steps[0]) * 1e-9 * (1 + float(jnp.abs(x).max())) if adaptive else 0.0


@every_chain
def test_ode_samplers(every):
    _, arrays = load(f"{FOLDER}/samplers")
    rows, ours, rescued = [row for row in cases("ode")[::every] if row["method"] in ODE_METHODS], {}, []
    wrong = [row for row in rows if "error" in row or (row.get("reverse") and row["path"] == "VP")]
    with jax.enable_x64(True):
        for row in rows:
            x, allowed = ode_sample(row, arrays)
            ours[f"{row['key']}.{'out_tight' if allowed else 'out'}", True] = Ours(x, absolute=allowed)
            rescued += [bool(np.isfinite(x).all())] if row in wrong else []
    right = [row for row in rows if row not in wrong]
    known = {key: array for key, array in arrays_of(arrays, right).items() if key.endswith("64")}
    tight = {key for key in known if key.endswith("_tight64")}
    # Beside a tight run the default one is 1e-3 off; the whole list of states is their trajectory.
    default = [key for key in known if key.endswith(".out64") and key.replace("out64", "out_tight64") in tight]
    compare(f"{FOLDER} ode", known, ours, given="|".join([r".*\.all64", *default]))
    assert all(rescued)
