"""The bound of a chain, term by term, against closed forms and the entropy of the data; and as a job."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation.jobs.vlb import bound_terms
from sampling.base import example_keys
from score_flow.paths.ddpm import DDPM
from score_flow.paths.linear import Linear
from score_flow.process.bound import VariationalBound, tables
from tests.exact import GaussianDenoiser, MixtureDenoiser
from tests.launch import run

KEYS = example_keys(0, jnp.arange(2000))


@pytest.mark.parametrize("path", [DDPM("cosine", 12), Linear()], ids=["ddpm", "linear"])
def test_terms_of_a_gaussian(path):
    """With exact posterior means the mean of every term is known: x0 - E[x0 | x_t] has the posterior variance."""
    times = np.arange(1, 12) / 12
    denoiser, bound = GaussianDenoiser(path), VariationalBound(path, tuple(times.tolist()), "small")
    x0 = denoiser.mean + denoiser.std * jax.random.normal(jax.random.key(1), (len(KEYS), 2))
    got = jax.jit(lambda x0: bound_terms(KEYS, denoiser, bound, x0))(x0)
    alpha, sigma = (np.asarray(f(jnp.asarray(times)), np.float64) for f in (path.alpha, path.sigma))
    variance = (denoiser.std * sigma) ** 2 / ((alpha * denoiser.std) ** 2 + sigma**2)
    rows = tables(path, bound.times)
    expected = {
        "x0_error": variance,
        "noise_error": (alpha / sigma) ** 2 * variance,
        "bits": rows.on_x0**2 * variance / np.exp(rows.log_small) / (2 * np.log(2)),
    }
    for name, mean in expected.items():
        values = np.asarray(getattr(got, name), np.float64)[1:]  # the first step's bits are a likelihood of levels
        error = values.std(axis=1, ddof=1) / np.sqrt(values.shape[1])
        assert (np.abs(values.mean(axis=1) - mean[1:]) < 4 * error).all(), name


def test_the_bound_is_above_the_entropy_of_the_data_and_nears_it():
    """One pixel of five equally likely levels has log2 5 bits; with exact means only the size of the steps is lost."""
    levels, gaps = np.linspace(-1, 1, 5), []
    for n in (20, 80):
        path = DDPM("cosine", n)
        denoiser = MixtureDenoiser(path, jnp.asarray(levels)[:, None], 0.0)
        bound = VariationalBound(path, tuple(path.times().tolist()), "small", decoder="exact", levels=5)
        x0 = jnp.asarray(levels, jnp.float32)[jnp.arange(len(KEYS)) % 5, None]
        terms = jax.jit(lambda x0, denoiser=denoiser, bound=bound: bound_terms(KEYS, denoiser, bound, x0))(x0)
        bits = np.asarray(bound.prior(x0) + terms.bits.sum(axis=0), np.float64)
        gaps.append(bits.mean() - np.log2(5))
        error = bits.std(ddof=1) / np.sqrt(len(bits))
        print(f"{n} steps: {gaps[-1]:.4f} +- {error:.4f} bits above the entropy")
        assert gaps[-1] > -3 * error
    assert gaps[1] < gaps[0] / 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("vlb")
    run(workdir, "--config.path.name=vp", "--config.model.prediction=noise", "--config.training.n_iters=10")
    return workdir


def evaluated(workdir, folder, *flags, expected=0):
    flags = [*flags, "--config.eval.jobs=('vlb',)", f"--eval_folder={folder}"]
    flags += [f"--config.eval.enable_{job}=False" for job in ("loss", "sampling", "bpd")]
    path = ("--config.path.name=vp", "--config.model.prediction=noise", "--config.training.n_iters=10")
    output = run(workdir, *path, *flags, mode="eval", expected=expected)
    return output if expected else json.loads((workdir / folder / "10/vlb/result.json").read_text())


@pytest.mark.slow
def test_job(trained):
    """A model trained on an interval, on a chain of ten times, in batches of two sizes: the same figures."""
    one, other = (
        evaluated(trained, f"b{size}", "--config.eval.vlb_steps=10", f"--config.eval.batch_size={size}")
        for size in (64, 100)
    )
    with np.load(trained / "b64/10/vlb/vlb.npz", allow_pickle=False) as arrays:
        total = arrays["prior"].mean() + arrays["terms"].sum()
        assert len(arrays["bits"]) == one["n_images"] and len(arrays["t"]) == one["n_steps"] == 10
        np.testing.assert_allclose([arrays["bits"].mean(), one["bits_per_dim"]], total, rtol=1e-12)
    np.testing.assert_allclose(other["bits_per_dim"], one["bits_per_dim"], rtol=1e-5)
    refused = evaluated(trained, "none", expected=2)
    assert "eval.vlb_steps" in refused.strip().splitlines()[-1]
