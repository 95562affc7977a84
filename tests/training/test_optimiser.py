"""The learning rate of each step, as it is applied and as it is logged, and which weights are decayed how."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_flow.config.options import OptimOptions
from score_flow.errors import UserError
from score_flow.training.optimiser import Rate, make_optimiser, optimiser_of, rate_of, updates_of
from tests.training.test_training import ADAM, optimise

LR, WARMUP, N = 3e-3, 5, 40
CLOSED = {
    "constant": lambda step: 1.0,
    "linear": lambda step: (N - step) / (N - WARMUP),
    "cosine": lambda step: np.cos(np.pi / 2 * (step - WARMUP) / (N - WARMUP)) ** 2,
    "inverse_sqrt": lambda step: (WARMUP / step) ** 0.5,
}


@pytest.mark.parametrize("name", CLOSED)
def test_rates_are_their_closed_forms(name):
    """On the host in float64, and by the steps of Adam on a constant gradient, each of which is its rate."""
    rate = rate_of(OptimOptions(lr=LR, schedule=name, warmup=WARMUP), N)
    expected = np.array([LR * (step / WARMUP if step < WARMUP else CLOSED[name](step)) for step in range(N)])
    host = [rate(step, np) for step in range(N)]
    assert all(isinstance(each, float) for each in host)
    np.testing.assert_allclose(host, expected, rtol=1e-12, atol=1e-18)
    optimiser = make_optimiser("Adam", **ADAM | {"lr": LR, "warmup": WARMUP}, schedule=name, n_iters=N)
    history = optimise(optimiser, jnp.zeros(()), [jnp.asarray(2.0)] * N)
    steps = -np.diff([0.0] + [params for params, _, _ in history])
    np.testing.assert_allclose(steps, expected, rtol=3e-4, atol=2e-8)  # of 1 - beta2^n and of sums up to 0.1


@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_rates_are_those_of_optax(warmup):
    line = [optax.linear_schedule(0.0, LR, warmup), optax.linear_schedule(LR, 0.0, N - warmup)]
    theirs = {
        "cosine": optax.warmup_cosine_decay_schedule(0.0, LR, warmup, N),
        "linear": optax.join_schedules(line, [warmup]),
    }
    steps = np.arange(N + 3)
    for name, schedule in theirs.items():
        got = Rate(LR, name, warmup, N)(steps, np)
        np.testing.assert_allclose(got, jax.vmap(schedule)(steps), rtol=1e-6, atol=1e-6 * LR)
        assert got[-1] == 0  # beyond the end too


def test_a_decay_that_starts_after_the_warm_up_is_edm2s():
    """ref_lr min(step/ramp, 1) / sqrt(max(step/ref_batches, 1)), of steps of one batch."""
    steps, options = np.arange(N), OptimOptions(lr=LR, schedule="inverse_sqrt", warmup=WARMUP, decay_start=20)
    expected = LR * np.minimum(steps / WARMUP, 1) / np.sqrt(np.maximum(steps / 20, 1))
    np.testing.assert_allclose(rate_of(options, N)(steps, np), expected, rtol=1e-12)
    assert Rate(LR, "inverse_sqrt", 0, N, 20)(80, np) == LR / 2


def test_rates_that_cannot_fall_are_refused():
    for name in ("cosine", "linear"):
        with pytest.raises(UserError, match=r"^config.optim.warmup is 40; .* below the 40 steps of training.$"):
            Rate(LR, name, N, N)
    with pytest.raises(UserError, match=r"^config.optim.warmup is 0; .* at least 1, or a config.optim.decay_start.$"):
        Rate(LR, "inverse_sqrt", 0, N)
    with pytest.raises(UserError, match=r"^config.optim.decay_start is 9, which optim.schedule = cosine has no use"):
        Rate(LR, "cosine", 0, N, 9)


def test_states_of_before_are_read():
    """Without a schedule the optimiser's state is what it was: counted by Adam, and by the rate if it grows."""
    params = {"kernel": jnp.zeros((2, 3))}
    for warmup, more in ((0, 0), (5, 1)):
        state = optimiser_of(OptimOptions(warmup=warmup), N).init(params)
        assert len(jax.tree.leaves(state)) == 3 + more  # count, mean, mean square
        assert updates_of(state) == 0
    updated = optimiser_of(OptimOptions(), N).update(params, state, params)[1]
    assert updates_of(updated) == 1
