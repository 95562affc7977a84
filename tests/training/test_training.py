"""The optimiser, the averages, the compiled steps on every mesh, and the loop around them."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from score_flow.data.conditioning import Conditioning
from score_flow.data.preprocessing import Preprocessing
from score_flow.data.scaling import Scaling
from score_flow.losses.base import Noising
from score_flow.losses.simple import Denoising
from score_flow.losses.weightings import WEIGHTINGS
from score_flow.model import Model
from score_flow.networks.mlp import MLP
from score_flow.paths.linear import Linear
from score_flow.process.prediction import PREDICTIONS
from score_flow.process.times import uniform
from score_flow.runs.preemption import Preemption
from score_flow.runs.sharding import BATCH_AXES, make_mesh, state_shardings, to_host
from score_flow.training.optimiser import make_optimiser
from score_flow.training.steps import (
    Metrics,
    TrainState,
    crossed,
    fit,
    init_state,
    make_train_steps,
)
from tests.paths.variants import EPS

ADAM = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "warmup": 0, "grad_clip": 0.0, "weight_decay": 0.0}
RNG = np.random.default_rng(0)


def optimise(optimiser, params, gradients):
    """Parameters and Adam's moments after every gradient."""
    state, history = optimiser.init(params), []
    update = jax.jit(optimiser.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        history.append(jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, *moments(state)[1:])))
    return history


def moments(opt_state):
    """Adam's (count, mu, nu)."""
    return next(s for s in opt_state if isinstance(s, optax.ScaleByAdamState))


def test_learning_rate_grows_from_zero_and_stays():
    """On a constant gradient Adam's step is its rate: k/warmup of lr at step k, counted from 0."""
    optimiser = make_optimiser("Adam", **ADAM | {"warmup": 4})
    history = optimise(optimiser, jnp.zeros(()), [jnp.asarray(2.0)] * 8)
    steps = -np.diff([0.0] + [params for params, _, _ in history])
    # Each is a difference of rounded sums; (1 - beta^n) loses log2(1/(1 - .999)) = 10 bits of float32.
    expected = 1e-2 * np.minimum(np.arange(8) / 4, 1.0)
    np.testing.assert_allclose(steps, expected, rtol=2**10 * EPS[False], atol=EPS[False])
    assert steps[0] == 0


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_optimisers_are_their_papers(name, clip):
    """Kingma & Ba 2015, algorithm 1, with decay in the gradient (L2) or in the step (decoupled), in float64."""
    lr, decay, warmup = 1e-2, 0.1, 3
    shapes = {"kernel": (3, 2), "bias": (4,)}
    params, *gradients = ({k: RNG.normal(size=s) for k, s in shapes.items()} for _ in range(7))
    gradients[2] = jax.tree.map(lambda g: 1e-2 * g, gradients[2])  # below the clip: left alone
    optimiser = make_optimiser(name, **ADAM | {"weight_decay": decay, "warmup": warmup, "grad_clip": clip})
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (params, gradients))
    history = optimise(optimiser, *single)
    m, v = ({k: np.zeros(s) for k, s in shapes.items()} for _ in range(2))
    for n, (gradient, (got, _, _)) in enumerate(zip(gradients, history, strict=True)):
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        for k, p in params.items():
            g = gradient[k] * (min(1.0, clip / norm) if clip else 1.0) + (decay * p if name == "Adam" else 0.0)
            m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g**2
            step = m[k] / (1 - 0.9 ** (n + 1)) / (np.sqrt(v[k] / (1 - 0.999 ** (n + 1))) + 1e-8)
            params[k] = p - lr * min(n / warmup, 1.0) * (step + (decay * p if name == "AdamW" else 0.0))
            # 10 bits in 1 - beta2^n, halved by the root, of steps of lr; and the roundings of the sums.
            np.testing.assert_allclose(got[k], params[k], atol=(n + 1) * (2**10 * lr + 4) * EPS[False])


# The compiled steps: a small network on 4x4 images of random levels.

SHAPE, B, RATES = (4, 4, 1), 16, (0.5, 0.99)
IMAGES = RNG.integers(0, 256, (30, B, *SHAPE), np.uint8)
ONE = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), BATCH_AXES)


class Problem:
    """A fresh state and the compiled steps of a mesh."""

    def __init__(self, mesh=ONE, dtype="float32", ema_warmup=True):
        model = Model(MLP(width=32, depth=1, dtype=dtype), Linear(), PREDICTIONS["velocity"])
        prepare = Preprocessing(Scaling(), Conditioning(), dequantised=True, flip=True)
        loss = Denoising(model, Noising(prepare, uniform(Linear(), 1e-3)), WEIGHTINGS["simple"])
        optimiser = make_optimiser("Adam", **ADAM | {"warmup": 4, "grad_clip": 1.0})
        state = init_state(loss.init(jax.random.key(0), {"image": IMAGES[0]}), loss, optimiser, n_ema=len(RATES))
        self.shardings = state_shardings(mesh, state)
        self.state = jax.device_put(state, self.shardings)
        self.steps = make_train_steps(
            loss, optimiser, ema_rates=RATES, ema_warmup=ema_warmup, seed=0, mesh=mesh, shardings=self.shardings
        )

    def run(self, n_steps, k=1):
        """(losses and gradient norms, the state on the host after each program), k steps in a program."""
        metrics, states = [], [to_host(self.state)]
        for step in range(0, n_steps, k):
            self.state, row = self.steps(self.state, {"image": IMAGES[step : step + k]})
            metrics.append(np.stack(row))
            states.append(to_host(self.state))
        return np.concatenate(metrics, axis=1), states


def distance(one, other) -> float:
    """|one - other| / |other| over all the numbers of two trees."""
    one, other = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(float) for tree in (one, other))
    return np.linalg.norm(one - other) / np.linalg.norm(other)


@pytest.fixture(scope="module")
def alone():
    """Thirty steps, one a program, on one device."""
    problem = Problem()
    return problem, *problem.run(30)


@pytest.fixture(scope="module")
def sharded():
    """Twelve steps with the state in eight parts, and averages without warm-up."""
    problem = Problem(make_mesh(fsdp=True), ema_warmup=False)
    return problem, *problem.run(12)


def assert_same(metrics, states, alone):
    """Losses, gradient norms, parameters and moments are those of one device."""
    n = metrics.shape[1]
    np.testing.assert_allclose(metrics, alone[1][:, :n], rtol=1e-6)
    got, expected = states[-1], alone[2][n]
    assert got.step == expected.step == n
    assert distance(got.params, expected.params) <= 1e-6
    for one, other in zip(moments(got.opt_state)[1:], moments(expected.opt_state)[1:], strict=True):
        assert distance(one, other) <= 1e-6


@pytest.mark.parametrize("mesh, k", [(ONE, 2), (make_mesh(), 1)], ids=["two steps in one program", "eight devices"])
def test_programs_and_devices_do_not_matter(alone, caplog, mesh, k):
    with jax.log_compiles():
        metrics, states = Problem(mesh).run(12, k)
    assert_same(metrics, states, alone)
    assert distance(states[-1].ema, alone[2][12].ema) <= 1e-6
    compiled = [record for record in caplog.records if "Finished XLA compilation of jit(train_steps)" in record.message]
    assert len(compiled) == 1


def test_a_sharded_state_is_the_same_and_really_sharded(alone, sharded):
    problem, metrics, states = sharded
    assert_same(metrics, states, alone)
    n_large = 0
    for leaf in jax.tree.leaves(problem.state):
        large = leaf.size >= 1024  # kernels of 32 x 32, their averages and moments
        n_large += large
        assert {shard.data.size for shard in leaf.addressable_shards} == {leaf.size // 8 if large else leaf.size}
    assert n_large == 5 * (1 + len(RATES) + 2)


def test_randomness_comes_from_the_number_of_the_step(alone):
    """The same images and parameters at another step: other times and noise; at the same step: the same."""
    problem, metrics, states = alone

    def loss(step):
        state = jax.device_put(states[0].replace(step=np.int32(step)), problem.shardings, may_alias=False)
        return float(problem.steps(state, {"image": IMAGES[:1]})[1].loss[0])

    assert loss(0) == metrics[0, 0] and abs(loss(1) / loss(0) - 1) > 1e-3


def test_the_old_state_is_given_up(sharded):
    """Donated: there is one copy of the state on the devices."""
    problem = sharded[0]
    before, _ = problem.steps(problem.state, {"image": IMAGES[:1]})  # numpy looks at the fixture's own and keeps it
    problem.state, _ = problem.steps(before, {"image": IMAGES[:1]})
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(problem.state))


@pytest.mark.parametrize("warmup", [True, False])
def test_averages_have_their_closed_form(alone, sharded, warmup):
    """ema_n = d_n ema_{n-1} + (1 - d_n) params_n, d_n = min(rate, (1 + n)/(10 + n)), n from 1, in float64."""
    states = (alone if warmup else sharded)[-1]
    assert len(states[-1].ema) == len(RATES)
    for i, rate in enumerate(RATES):
        ema = jax.tree.map(np.float64, states[0].params)
        for n, state in enumerate(states[1:], start=1):
            decay = min(rate, (1 + n) / (10 + n)) if warmup else rate
            ema = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, ema, state.params)
        assert distance(states[-1].ema[i], ema) <= 1e-6


def test_bfloat16_networks_learn_the_same_with_float32_weights(alone):
    metrics, states = Problem(dtype="bfloat16").run(30)
    error = np.abs(metrics[0] / alone[1][0] - 1)
    assert 1e-6 < error.max() <= 0.01
    assert {leaf.dtype.name for leaf in jax.tree.leaves(states[-1])} == {"float32", "int32"}


# The loop around them.


def test_crossed_means_that_a_multiple_lies_between():
    for every in range(6):
        for previous in range(12):
            for step in range(previous + 1, 13):
                multiples = [n for n in range(previous + 1, step + 1) if every and n % every == 0]
                assert crossed(every, previous, step) == bool(multiples)


def test_signals_set_the_flag_and_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for number in (signal.SIGTERM, signal.SIGINT):
        with Preemption() as preemption:
            assert not preemption.agreed()
            os.kill(os.getpid(), number)
            assert preemption.agreed()
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    with pytest.raises(KeyboardInterrupt), Preemption():  # a second Ctrl-C does not wait
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def looped(start, n_steps, k, stop_after=None):
    """(step reached, what was called) of fit() with two hooks, pre-empted after a step."""
    calls = []

    def hook(name):
        def call(previous, step, state, metrics):
            calls.append((name, previous, step, int(state.step)))

        return call

    def steps(state, batch):
        return state.replace(step=state.step + len(batch["image"])), Metrics(jnp.zeros(1), jnp.zeros(1))

    def batches(step, k):
        calls.append(("batch", step, k))
        return {"image": np.zeros(k)}

    state = TrainState(start, {}, (), (), ())
    step, state = fit(
        state,
        steps,
        batches,
        start=start,
        n_steps=n_steps,
        n_jitted_steps=k,
        hooks=[hook("first"), hook("second")],
        stop=lambda: bool(calls) and calls[-1][2] == stop_after,
    )
    assert state.step == step
    return step, calls


def test_fit_calls_its_hooks_in_order_and_ends_on_the_last_step():
    def program(step, k):
        return [("batch", step, k), ("first", step, step + k, step + k), ("second", step, step + k, step + k)]

    assert looped(0, 10, 4) == (10, program(0, 4) + program(4, 4) + program(8, 2))
    assert looped(3, 10, 4) == (10, program(3, 4) + program(7, 3))
    assert looped(0, 10, 4, stop_after=4) == (4, program(0, 4))
    assert looped(10, 10, 4) == (10, [])
