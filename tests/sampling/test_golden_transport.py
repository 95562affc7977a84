"""Every number that the source projects' SiT transport (interpolants, conversions, losses) gave, against ours.

SiT's time is mirrored: t_sit = 1 - t, x1 is data, x0 is noise, v_sit = -v.

Nothing below names a case: parameters come from the json beside the arrays, and a key that no computation is mapped to
fails the test. A reference that is NaN or infinite asks of ours a number or the infinite limit, never NaN.
`pytest -s` prints the worst relative error of each array.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sampling.reverse_sde import DIFFUSIONS
from score_flow.model import Model, Preconditioning, score_of, velocity_of
from score_flow.paths.base import Path
from score_flow.paths.gvp import GVP
from score_flow.paths.linear import Linear
from score_flow.paths.vp import VP
from score_flow.process.prediction import PREDICTIONS, Estimate, score, velocity
from score_flow.process.times import uniform
from tests.golden_compare import Ours, compare, split_precision
from tests.golden_data import load
from tests.paths.variants import EPS
from tests.toy_losses import denoising

INTERPOLANTS = {"Linear": Linear(), "GVP": GVP(), "VP": VP(0.1, 20.0)}
FORMS = {"SBDM": "g2", "inccreasing-decreasing": "increasing_decreasing"}  # the source's spellings


class ToyFlow(nn.Module):
    """The network of the SiT cases; negative: our velocity is minus theirs."""

    negative: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b c h w"], t, condition, *, deterministic=True):
        w, u, a = (self.param(name, nn.initializers.zeros, (1, x.shape[1], 1, 1)) for name in "wua")
        t, y = (value.reshape(-1, 1, 1, 1) for value in (t, condition["label"]))
        out = (a + 0.3 * jnp.cos(3 * t)) * x + u * jnp.tanh(w * x + t) + 0.05 * y
        return -out if self.negative else out


def toy_model(path: Path, prediction: str) -> Model:
    return Model(ToyFlow(prediction == "velocity"), path, PREDICTIONS[prediction], Preconditioning("1-t", 1.0))


def transport_grid(path: Path, arrays, names, t) -> dict:
    """The interpolant's own quantities at our times t."""
    data, start, v = (jnp.asarray(arrays[f"grid.{name}"], float) for name in ("x1", "x0", "v"))
    c, x = path.at(t), path.perturb(data, start, t)
    ce = c.expand(x)
    pair = velocity.decode(-v, x, ce)
    params = {name: jnp.asarray(arrays[f"toy_{name}"], float) for name in "wua"}
    label = {"label": jnp.zeros(len(t), int)}
    values = {
        "xt": x, "ut": -velocity.target(Estimate(data, start), ce), "alpha": c.alpha, "d_alpha": -c.dalpha,
        "sigma": c.sigma, "d_sigma": -c.dsigma, "d_alpha_alpha_ratio": -c.drift, "drift": ce.drift * x,
        "drift_var": ce.g2 / 2, "score_from_velocity": score_of(pair, ce),
        "noise_from_velocity": pair.noise, "velocity_from_score": -velocity_of(score.decode(v, x, ce), ce),
    }  # fmt: skip
    for name in (name for name in names if name.startswith("diffusion.")):
        _, form, norm = name.split(".", 2)
        w = DIFFUSIONS[FORMS.get(form, form)](ce, t.reshape(-1, 1, 1, 1), float(norm.removeprefix("norm")))
        values[name] = w / 2  # their w is half of ours
    functions = {}
    for prediction in ("velocity", "score", "noise"):
        denoiser = toy_model(path, prediction).bind(params, label)
        functions[f"{prediction}.drift"] = -denoiser.velocity(data, t)
        functions[f"{prediction}.score"] = denoiser.score(data, t)
    return {"grid": values, "fn": functions}


def transport_loss(arrays, base: str, eps: float, x64: bool) -> dict:
    """Their loss of each example, the network's output, and the gradient of the mean by w."""
    _, path_name, prediction, weighting = base.split(".")
    path, start = INTERPOLANTS[path_name], 0.0 if path_name == "VP" else eps
    # SiT weights score and noise models only, and its likelihood weight is half of ours.
    weight = "velocity" if prediction == "velocity" else {"None": "simple"}.get(weighting, weighting)
    half = 0.5 if weight == "likelihood" else 1.0
    t = 1 - (jnp.asarray(arrays[f"{base}.t_uniform"], float) * (1 - eps - start) + start)
    data, start_noise = (jnp.asarray(arrays[name], float) for name in ("x1", f"{base}.x0"))
    params = {name: jnp.asarray(arrays[f"toy_{name}"], float) for name in "wua"}
    label = {"label": jnp.asarray(arrays["y"])}
    model = toy_model(path, prediction)
    objective = denoising(model, uniform(path, 0.0), weight)

    def mean_and_losses(params):
        losses = half * objective.at(params, data, start_noise, t, label)
        return losses.mean(), losses

    if not x64:  # the rest of their numbers are float64
        return {"loss": mean_and_losses(params)[1]}
    gradient, losses = jax.grad(mean_and_losses, has_aux=True)(params)
    output = model.apply(params, path.perturb(data, start_noise, t), t, label)
    return {"loss": losses, "pred": -output if prediction == "velocity" else output, "grad_w": gradient["w"]}


def test_sit_transport():
    description, arrays = load("sit/transport/transport")
    eps = {case["key"]: case.get("train_eps") for case in description["cases"]}
    ours = {("prior.logp", False): Ours(Linear().prior_log_prob(jnp.asarray(arrays["prior.z"])))}
    for path_name, path in INTERPOLANTS.items():
        prefix = f"grid.{path_name}."
        names = {split_precision(key)[0].removeprefix(prefix) for key in arrays if key.startswith(prefix)}
        results = {}
        # Our float32 time 1 - t_sit is rounded where theirs is not: what eps does to a value is found by doing it.
        for x64, shift in ((False, 0.0), (True, 0.0), (True, EPS[False])):
            with jax.enable_x64(x64):
                t = jnp.asarray(np.abs(1 - np.asarray(arrays["grid.t"], np.float64) - shift), float)
                results[x64, shift] = jax.tree.map(np.asarray, transport_grid(path, arrays, names, t))
        for kind, values in results[True, 0.0].items():
            for name, exact in values.items():
                moved = np.abs(results[True, EPS[False]][kind][name] - exact)
                if name == "d_sigma":  # jax differentiates expm1(y) as expm1(y) + 1: eps of y', however small exp(y) is
                    moved = moved + EPS[False] * np.abs(results[True, 0.0]["grid"]["d_alpha_alpha_ratio"])
                ours[f"{kind}.{path_name}.{name}", True] = Ours(exact)
                ours[f"{kind}.{path_name}.{name}", False] = Ours(results[False, 0.0][kind][name], absolute=4 * moved)
    for base in (key for key in eps if key.startswith("loss.")):
        for x64 in (False, True):
            with jax.enable_x64(x64):
                values = transport_loss(arrays, base, eps[base], x64)
            ours |= {(f"{base}.{name}", x64): Ours(value) for name, value in values.items()}
    # loss_sit.* needs the published SiT weights: the tests of the SiT network and its importer compare those.
    given = r"x1|y|toy_.|grid\.(t|x0|x1|v)|prior\.z|loss\..*\.(x0|t_uniform)|sit\..*|loss_sit\..*"
    compare("sit/transport", arrays, ours, given)
