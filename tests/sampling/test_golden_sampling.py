"""Every sample that score_sde's predictors, correctors and samplers drew, against ours fed with the noise they drew.

Nothing below names a case: settings come from the json beside the arrays and from the keys, and a key that no
computation is mapped to fails the test. Where the source raises, ours is finite, or one line says what is undefined.
`pytest -s` prints the worst relative error of each array.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from sampling import base, predictor_corrector
from sampling.flow import Solver, flow
from score_flow.errors import UserError
from score_flow.model import Denoiser
from score_flow.numerics import expand
from score_flow.paths.base import Path
from score_flow.process.prediction import score
from tests.discover import thinned
from tests.golden_compare import Ours, compare
from tests.golden_data import golden_dir, load
from tests.pretrained.imported import Imported
from tests.sampling.published import correct, predict
from tests.sampling.test_golden_sde import Process

FOLDER = "score_sde/sampling"
HERE = all((golden_dir() / FOLDER / f"{name}.npz").exists() for name in ("updates", "samplers"))
pytestmark = pytest.mark.skipif(not HERE, reason=f"no {FOLDER}")

# The source's names.
PREDICTORS = {"euler_maruyama": "euler", "reverse_diffusion": "reverse_diffusion", "ancestral_sampling": "ancestral"}
CORRECTORS = {"langevin": "langevin", "ald": "annealed_langevin"}
CHAINS = {"vp": "ddpm", "ve": "smld", "subvp": "euler"}
# In float32 it is the same formulas.
every_precision = pytest.mark.parametrize("x64", thinned([True, False], 2), ids=["float64", "float32"])
OTHER = {True: r".*(?<!64)", False: r".*64"}  # arrays of the other precision
SCALERS = {"x": lambda x: x, "(x+1)/2": lambda x: (x + 1) / 2}


@dataclasses.dataclass(frozen=True)
class Toy(Denoiser):
    """The score of the toy networks: of t, or of the level that a discrete model is told."""

    process: Process
    discrete: bool
    weights: dict[str, Float[Array, "..."]]
    condition: None = None

    @property
    def path(self) -> Path:
        return self.process.path

    def given(self, condition):
        return self

    def estimate(self, x, t):
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        return score.decode(self.ve(x, t) if self.process.kind == "ve" else self.vp(x, t), x, self.path.at(t).expand(x))

    def ve(self, x, t):
        w, u, mu, s2 = (self.weights[name] for name in ("w", "u", "mu", "s2"))
        sigma = self.path.sigma(t)
        if self.discrete:  # the label is the nearest level, counted from the largest
            label = jnp.round((1 - t) * (self.process.n - 1)).astype(int)
            sigma = jnp.asarray(float32_levels(self.process), x.dtype)[label]
        sigma = expand(sigma, x)
        return (mu - x) / (s2 + sigma**2) + u * jnp.tanh(w * x / (1 + sigma)) / (1 + sigma)

    def vp(self, x, t):
        w, u = self.weights["w"], self.weights["u"]
        a = expand(t / (t + 0.05), x)
        out = a * x + u * jnp.tanh(w * x) * (1 - 0.5 * a)
        std = self.path.sigma(t)
        if self.discrete and self.process.kind == "vp":  # a table of every step's, read at floor(t (n - 1))
            n = self.process.n
            table = np.sqrt(1 - np.cumprod(1 - np.linspace(self.process.low / n, self.process.high / n, n)))
            std = jnp.asarray(table, x.dtype)[jnp.floor(t * (n - 1)).astype(int)]
        return -out / expand(std, x)


def float32_levels(p: Process) -> Float[np.ndarray, "n"]:
    """The toy's sigmas, descending: torch's float32 exp(linspace), counted from both ends with fused multiply-adds."""
    low, high = np.log([p.low, p.high]).astype(np.float32)
    step = np.float64((high - low) / np.float32(p.n - 1))
    i = np.arange(p.n)
    logs = np.where(i < p.n // 2, low + step * i, high - step * (p.n - 1 - i)).astype(np.float32)
    return np.exp(logs.astype(np.float64)).astype(np.float32)[::-1]


def toy(arrays, process: Process, continuous: bool) -> Toy:
    weights = {name: jnp.asarray(arrays[f"toy_{name}"], float) for name in ("w", "u", "mu", "s2")}
    return Toy(process, not continuous, weights)


def process_of(row) -> Process:
    kind, low, high, n = row
    return Process(kind, float(low), float(high), n)


# One update of a predictor or a corrector.

UPDATE = re.compile(
    r"(?P<sde>\w+)\.(?P<labels>cont|disc)\.(pred|corr)\.(?P<name>\w+)\."
    r"(probability_flow(?P<flow>[01])|snr(?P<snr>[\d.e-]+)_n_steps(?P<n_steps>\d+))"
)


def kernels_of(parts, process: Process) -> list:
    name, chain, n = parts["name"], CHAINS[process.kind], process.n
    if name == "none":
        return []
    if parts["flow"]:
        return [predict(PREDICTORS[name], chain, n, parts["flow"] == "1")]
    return [correct(CORRECTORS[name], float(parts["snr"]), chain, n, "batch")] * int(parts["n_steps"])


def update(kernels, denoiser, x, t, noises):
    """(x, x_mean) after some kernels with given noise, each example at its own t."""
    mean = x
    for kernel, noise in zip(kernels, noises, strict=True):
        law = kernel(denoiser, x, t - 1 / denoiser.process.n, t)
        mean, std = law(noise) if callable(law) else law
        x = mean + std * noise
    return x, mean


@every_precision
def test_updates(x64):
    description, arrays = load(f"{FOLDER}/updates")
    processes = {tag: process_of(row) for tag, row in description["sdes"].items()}
    ours, missing = {}, []
    for case in description["cases"]:
        parts = UPDATE.fullmatch(case["key"]).groupdict()
        process = processes[parts["sde"]]
        if parts["name"] == "ancestral_sampling" and parts["flow"] == "1":  # undefined in both
            with pytest.raises(UserError, match="ddim"):
                predictor_corrector.build(predictor="ancestral", probability_flow=True)
            continue
        with jax.enable_x64(x64):
            x, t = jnp.asarray(arrays[f"{parts['sde']}.x"], float), jnp.asarray(arrays["t"], float)
            kernels = kernels_of(parts, process)
            shape = (len(kernels), *x.shape)
            recorded = arrays.get(f"{case['key']}.noise", np.random.default_rng(0).standard_normal(shape))
            noises = jnp.asarray(recorded[: len(kernels)], float)
            drawn, mean = update(kernels, toy(arrays, process, parts["labels"] == "cont"), x, t, noises)
        if "error" in case:  # subVP has no correctors and no ancestral step there, Euler-Maruyama no flow
            missing.append(bool(np.isfinite(drawn).all() and np.isfinite(mean).all()))
        ours[f"{case['key']}.x", x64], ours[f"{case['key']}.x_mean", x64] = Ours(drawn), Ours(mean)
    compare(f"{FOLDER} updates", arrays, ours, given=rf"toy_.*|t|\w+\.x|.*\.noise|{OTHER[x64]}")
    assert all(missing)


# Whole samplers.


def feed(monkeypatch, prior, noises):
    """Make samplers draw the recorded prior and then the recorded noises, in their order."""
    monkeypatch.setattr(Path, "prior_sample", lambda self, keys, shape, t_max=1.0: prior)
    monkeypatch.setattr(base, "normal", lambda keys, shape, fold: noises[fold])


def sample(monkeypatch, case, denoiser, noises):
    """The sample of a case's preset, from its noises (noises[0]: the prior's)."""
    process = process_of(case["sde"])
    corrector, predictor = CORRECTORS.get(case["corrector"], ""), PREDICTORS.get(case["predictor"], "")
    sampler = predictor_corrector.build(
        t_min=case["eps"], n_steps=process.n, predictor=predictor, corrector=corrector, snr=case["snr"],
        n_corrector_steps=case["n_steps"], norms="batch" if corrector == "langevin" else "example",
        chain=CHAINS[process.kind], probability_flow=case["probability_flow"],
        # An absent predictor is the source's last kernel too, and its mean is what it was given: noise and all.
        denoise=case["denoise"] and bool(predictor),
    )  # fmt: skip
    prior = process.reference_prior_std * noises[0]

    @jax.jit
    def draw(prior, noises):
        feed(monkeypatch, prior, noises)
        return sampler(base.example_keys(0, jnp.arange(len(prior))), denoiser, prior.shape[1:])

    result = draw(prior, noises[1:])
    monkeypatch.undo()
    if corrector and predictor:  # the source counts an absent one too
        assert int(result.n_evaluations) == case["nfe"]
    return SCALERS[case["inverse_scaler"]](result.x)


def cases(kind: str, network: bool) -> list:
    if not (golden_dir() / FOLDER / "samplers.json").exists():
        return []
    rows = load(f"{FOLDER}/samplers")[0]["cases"]
    return [row for row in rows if row["key"].startswith(f"{kind}.") and ("checkpoint" in row) == network]


def arrays_of(arrays, rows) -> dict:
    """The arrays of some cases."""
    return {key: array for key, array in arrays.items() if any(key.startswith(row["key"] + ".") for row in rows)}


@every_precision
def test_predictor_corrector_samplers(x64, monkeypatch):
    _, arrays = load(f"{FOLDER}/samplers")
    rows, ours = cases("pc", network=False), {}
    with jax.enable_x64(x64):
        for row in rows:
            denoiser = toy(arrays, process_of(row["sde"]), row["continuous"])
            noises = jnp.asarray(arrays[f"{row['key']}.noise"], float)
            ours[f"{row['key']}.out", x64] = Ours(sample(monkeypatch, row, denoiser, noises))
    compare(f"{FOLDER} pc", arrays_of(arrays, rows), ours, given=rf".*\.noise|{OTHER[x64]}")


# The probability flow. The source is Dormand-Prince with one step size for the batch, ours under another control of it:
# each leaves at most atol + rtol |x| a step, which the flow towards the data does not amplify against |x|.


def flow_sample(case, denoiser, prior_noise):
    """(the flow from a recorded prior, denoised where the case is, and how far two solvers may be apart)."""
    process, eps = process_of(case["sde"]), case["eps"]
    solver = Solver("dopri5", case["rtol"], case["atol"], per_example=False)

    @jax.jit
    def solve(noise):
        return flow(denoiser, process.reference_prior_std * noise, solver, t0=1.0, t1=eps)

    x, stats = solve(prior_noise)
    steps = int(stats.n_steps[0]) + case["nfe64"] // 6
    if case["denoise"]:
        kernel = predict("reverse_diffusion", CHAINS[process.kind], process.n)
        x = kernel(denoiser, x, jnp.asarray(eps - 1 / process.n), jnp.asarray(eps)).mean
    allowed = steps * (case["atol"] + case["rtol"] * float(jnp.abs(x).max()))
    return SCALERS[case["inverse_scaler"]](x), allowed


def test_flow_samplers():
    _, arrays = load(f"{FOLDER}/samplers")
    rows, ours = cases("ode", network=False), {}
    with jax.enable_x64(True):
        for row in rows:
            denoiser = toy(arrays, process_of(row["sde"]), True)
            x, allowed = flow_sample(row, denoiser, jnp.asarray(arrays[f"{row['key']}.prior_noise"], float))
            ours |= {(f"{row['key']}.out", x64): Ours(x, absolute=allowed) for x64 in (False, True)}
    compare(f"{FOLDER} ode", arrays_of(arrays, rows), ours, given=r".*_noise")


# The same with real networks.


@every_precision
@pytest.mark.parametrize(
    "row", thinned(cases("pc", network=True) + cases("ode", network=True), 3), ids=lambda row: row["key"]
)
def test_networks(row, x64, monkeypatch):
    file = golden_dir() / "score_sde" / row["checkpoint"].split()[0]
    if not file.exists():
        pytest.skip(f"no {file.name}")
    reference, arrays = load(f"score_sde/models/{file.stem}")[0]["config"], load(f"{FOLDER}/samplers")[1]
    with jax.enable_x64(x64):
        imported = Imported(file, reference, "float64" if x64 else "float32")
        model = imported.model()
        assert model.path == process_of(row["sde"]).path
        denoiser = model.bind(imported.params(model, "raw"))
        noises = {k: jnp.moveaxis(jnp.asarray(arrays[f"{row['key']}.{k}"], float), -3, -1)
                  for k in ("noise", "prior_noise") if f"{row['key']}.{k}" in arrays}  # fmt: skip
        if row["key"].startswith("pc."):
            value = Ours(jnp.moveaxis(sample(monkeypatch, row, denoiser, noises["noise"]), -1, 1))
        else:
            x, allowed = flow_sample(row, denoiser, noises["prior_noise"])
            value = Ours(jnp.moveaxis(x, -1, 1), absolute=allowed)
    name = f"{row['key']}.out"
    compare(row["key"], arrays_of(arrays, [row]), {(name, x64): value}, given=rf".*noise|{OTHER[x64]}")
