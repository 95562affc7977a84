"""Time grids: exact ends, strictly descending, and uniform in the variable that names them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sampling import ancestral, ddim, ode, predictor_corrector, sde
from sampling.base import example_keys
from sampling.flow import Solver, flow
from score_flow.errors import UserError
from score_flow.paths.linear import Linear
from score_flow.process.grid import GRIDS, choose, choose_in_chain, intervals, karras, respace
from tests.exact import GaussianDenoiser
from tests.golden_data import golden_dir
from tests.paths.variants import DEFAULTS, EPS, PATHS, coefficients

T_MIN, T_MAX, N = 1e-3, 0.97, 127  # t = 1 has no finite log SNR on an interpolant

every_path = pytest.mark.parametrize("path", DEFAULTS.values(), ids=DEFAULTS.keys())
every_grid = pytest.mark.parametrize("name", GRIDS)

# Each grid is uniform in this function of its times.
VARIABLES = {
    "uniform": lambda t, log_snr: t,
    "quadratic": lambda t, log_snr: np.sqrt(t),
    "karras": lambda t, log_snr: np.exp(-log_snr / (2 * 7.0)),
    "log_snr": lambda t, log_snr: log_snr,
}


def test_every_variable_is_of_a_grid():
    """One more grid may be even in nothing: its ends and its order are tested all the same."""
    assert set(VARIABLES) <= set(GRIDS)


@every_path
@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_ends_order_and_uniformity(path, x64):
    for name in GRIDS:
        with jax.enable_x64(x64):
            times = GRIDS[name](path, N, T_MIN, T_MAX)
        assert isinstance(times, np.ndarray) and times.dtype == np.float64 and times.shape == (N + 1,)
        assert times[0] == T_MAX and times[-1] == T_MIN
        assert (np.diff(times) < 0).all()
        if name not in VARIABLES:
            continue

        c = coefficients(path, times)
        logs = np.abs(np.log(c["alpha"])) + np.abs(np.log(c["sigma"]))
        # Errors of log SNR as made by the dtype that solved for the times: its logarithms, and a rounding of t.
        error = 8 * EPS[x64] * (1 + logs.max() + np.max(c["rate"] * times))
        values = VARIABLES[name](times, c["log_snr"])
        error = error * np.abs(values).max()  # no variable moves by more than itself x that of log SNR
        steps = np.abs(np.diff(values))
        assert np.ptp(steps) <= 2 * error, name
        assert 2 * error < steps.mean(), name  # the comparison above means something


def test_karras_rho():
    times = karras(Linear(), 10, 0.1, 0.9, rho=3.0)
    np.testing.assert_allclose(np.diff((times / (1 - times)) ** (1 / 3), 2), 0, atol=1e-5)


@every_grid
def test_one_step_is_both_ends(name):
    np.testing.assert_array_equal(GRIDS[name](Linear(), 1, T_MIN, T_MAX), [T_MAX, T_MIN])


@every_grid
def test_intervals_are_contiguous_and_descend(name):
    times = GRIDS[name](Linear(), N, T_MIN, T_MAX)
    rows = intervals(times)
    assert rows.shape == (N, 2) and (rows[:, 0] < rows[:, 1]).all()
    np.testing.assert_array_equal(rows[1:, 1], rows[:-1, 0])
    assert rows[0, 1] == T_MAX and rows[-1, 0] == T_MIN


@pytest.mark.parametrize("name", ["karras", "log_snr"])
@pytest.mark.parametrize("path_name", ["linear", "gvp"])
@pytest.mark.parametrize("ends", [(1e-3, 1.0), (0.0, 0.9), (0.0, 1.0)], ids=["t_max", "t_min", "both"])
def test_an_infinite_log_snr_is_reached_in_one_step(name, path_name, ends):
    """The other times are those of the grid between the ends at which log SNR is -10 or 10."""
    path, (low, high) = PATHS[path_name], ends
    with jax.enable_x64(True):
        times = GRIDS[name](path, N, low, high)
        inside = times[high == 1 : N + (low > 0)]
        assert len(times) == N + 1 and times[0] == high and times[-1] == low and (np.diff(times) < 0).all()
        np.testing.assert_allclose(inside, GRIDS[name](path, len(inside) - 1, inside[-1], inside[0]), rtol=1e-12)
        for time, value in [(times[1], -10.0)] * (high == 1) + [(times[-2], 10.0)] * (low == 0):
            assert abs(float(path.log_snr(jnp.asarray(time))) - value) < 1e-9


@pytest.mark.parametrize("name", ["karras", "log_snr"])
@pytest.mark.parametrize("ends", [(0.999, 1.0), (0.0, 0.001)])
def test_infinite_ends_close_to_the_finite_one(name, ends):
    """Where all of the grid lies beyond a log SNR of 10, it goes on to 10 more."""
    times = GRIDS[name](Linear(), 6, *ends)
    assert len(times) == 7 and (np.diff(times) < 0).all()


@pytest.mark.parametrize("path", [PATHS["vp"], PATHS["ddpm"]], ids=["vp", "ddpm"])
@pytest.mark.parametrize("name", ["karras", "log_snr"])
def test_a_grid_is_made_on_the_host_while_a_jit_traces(path, name):
    def traced(x):
        times = GRIDS[name](path, N, T_MIN, T_MAX)
        assert isinstance(times, np.ndarray)
        return x * jnp.asarray(times, x.dtype)

    np.testing.assert_allclose(jax.jit(traced)(jnp.asarray(1.0)), GRIDS[name](path, N, T_MIN, T_MAX), rtol=1e-6)


@pytest.mark.parametrize("name", ["karras", "log_snr"])
@pytest.mark.slow
def test_a_solver_with_a_grid_of_log_snr_works_inside_jit(name):
    denoiser, x = GaussianDenoiser(Linear()), jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    solver = Solver(method="heun", n_steps=16, grid=name)

    def solve(x):
        return flow(denoiser, x, solver, t0=0.9, t1=0.01)[0]

    y = jax.jit(solve)(x)
    (mean, std), (end_mean, end_std) = denoiser.marginal(0.9), denoiser.marginal(0.01)
    np.testing.assert_allclose(y, end_mean + end_std * (x - mean) / std, atol=2e-2)  # second order, 16 steps
    np.testing.assert_allclose(y, solve(x), atol=1e-5)


@pytest.mark.parametrize("grid", [(0.9, 0.4, 0.1), [0.9, 0.4, 0.1], "(0.9, 0.4, 0.1)", "[0.9,0.4,0.1,]"])
def test_given_times_are_taken_as_they_are(grid):
    np.testing.assert_array_equal(choose("grid", grid)(Linear(), 7, 0.2, 0.3), [0.9, 0.4, 0.1])


@every_grid
def test_a_named_grid_is_that_grid(name):
    assert choose("grid", name) is GRIDS[name]


@pytest.mark.parametrize(
    "grid", ["unifrm", "(0.9, x)", (0.5,), (0.1, 0.9), (0.9, 0.9), (1.5, 0.1), (0.5, -0.1), (0.5, float("nan"))]
)
def test_a_bad_grid_is_refused_in_one_line(grid):
    with pytest.raises(UserError, match="allowed") as caught:
        choose("sampler x: grid", grid)
    assert "sampler x: grid" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("spec, kept", [("4", [9, 6, 3, 0]), ("ddim5", [8, 6, 4, 2, 0])])
def test_a_respaced_chain_goes_through_its_kept_steps_to_the_data(spec, kept):
    times = choose_in_chain("sampler x", "uniform", 10, spec)(Linear(), 10, 0.2, 0.3)
    np.testing.assert_allclose(times, [*((i + 1) / 10 for i in kept), 0.0], rtol=1e-15)
    assert choose_in_chain("sampler x", "karras", 10, "") is karras


@pytest.mark.parametrize("grid, spec", [("karras", "4"), ("uniform", "0"), ("uniform", "11"), ("unifrm", "4")])
def test_a_respacing_that_cannot_be_is_refused(grid, spec):
    with pytest.raises(UserError):
        choose_in_chain("sampler x", grid, 10, spec)


@pytest.mark.parametrize("module", [ancestral, ddim], ids=["ancestral", "ddim"])
def test_a_respaced_sampler_is_the_one_on_those_times(module):
    """And draws from the prior at the first of them."""
    denoiser, keys = GaussianDenoiser(PATHS["ddpm"]), example_keys(0, jnp.arange(4))
    times = tuple(choose_in_chain("sampler x", "uniform", 10, "ddim5")(denoiser.path, 10, 0.0, 1.0))
    respaced, given = module.build(n_steps=10, respacing="ddim5"), module.build(grid=times)
    x, same = (jax.jit(lambda s=sampler: s(keys, denoiser, (3,)))() for sampler in (respaced, given))
    np.testing.assert_array_equal(x.x, same.x)
    assert int(x.n_evaluations) == 5


TIMES = (0.8, 0.5, 0.3, 0.1)


@pytest.mark.parametrize("module", [ancestral, ddim, sde, predictor_corrector, ode])
def test_samplers_take_given_times(module):
    """They start at the first and call the network at each but the last, whatever the other settings say."""
    times = []

    class Recording(GaussianDenoiser):
        def start(self, keys, shape, t):
            times.append(t)
            return super().start(keys, shape, t)

        def estimate(self, x, t):
            jax.debug.callback(lambda t: times.append(float(t)), t, ordered=True)
            return super().estimate(x, t)

    fields = {ode: {"method": "euler", "per_example": False}, sde: {"last_step": "none"}}.get(module, {})
    sampler, denoiser = module.build(grid=str(TIMES), t_max=0.99, **fields), Recording(Linear())
    result = jax.jit(lambda keys: sampler(keys, denoiser, (3,)))(example_keys(0, jnp.arange(2)))
    jax.effects_barrier()
    assert int(result.n_evaluations) == 3 and np.isfinite(result.x).all()
    np.testing.assert_allclose(times, [0.8, *TIMES[:-1]], atol=1e-6)


def test_a_solver_refuses_times_of_another_integral():
    solver, denoiser = Solver(method="euler", grid=TIMES), GaussianDenoiser(Linear())
    assert hash(solver) == hash(Solver(method="euler", grid=TIMES)) and solver.fixed
    with pytest.raises(UserError, match="runs from 0.8 to 0.1, the integral from 0.9 to 0.1"):
        flow(denoiser, jnp.ones((1, 2)), solver, t0=0.9, t1=0.1)
    up, _ = flow(denoiser, jnp.ones((1, 2)), solver, t0=0.1, t1=0.8)
    assert np.isfinite(up).all()


RESPACED = [
    (10, "10", tuple(range(10))),
    (10, "1", (0,)),
    (10, "4", (0, 3, 6, 9)),
    (7, "3,2", (0, 2, 3, 4, 6)),  # the first section is the longer one; 1.5 rounds to the even 2
    (10, "ddim5", (0, 2, 4, 6, 8)),
    (10, "ddim4", (0, 3, 6, 9)),
    (6, [2, 0, 1], (0, 1, 4)),
]


@pytest.mark.parametrize("n, spec, kept", RESPACED)
def test_respacing(n, spec, kept):
    assert respace(n, spec) == kept


@pytest.mark.parametrize(
    "n, spec",
    [(10, "11"), (10, "4,6,1"), (10, "ddim6"), (10, "ddim1"), (10, "ddim"), (10, "ten"), (10, "-1"), (10, [])],
)
def test_a_respacing_that_does_not_exist_is_refused_in_one_line(n, spec):
    with pytest.raises(UserError, match="respacing") as caught:
        respace(n, spec)
    assert "\n" not in str(caught.value)


def test_golden_respacing():
    """Every recorded table of improved-diffusion, and every refusal."""
    files = sorted((golden_dir() / "improved_diffusion" / "diffusion").glob("space_timesteps*.json"))
    if not files:
        pytest.skip("not in this set of reference numbers")
    cases = [case for file in files for case in json.loads(file.read_text())]
    assert any("error" in case for case in cases) and any("out" in case for case in cases)
    for case in cases:
        n, spec = case["num_timesteps"], case["section_counts"]
        if "error" in case:
            with pytest.raises(UserError):
                respace(n, spec)
        else:
            assert list(respace(n, spec)) == case["out"], (n, spec)
