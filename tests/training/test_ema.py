"""Power-function averages of the weights, and the reconstruction of other widths from those of milestones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from evaluation.weights import load_params, weights_of, which_of
from score_flow.build import experiment
from score_flow.config.loading import differences, load, with_settings
from score_flow.config.options import WIDEST_EMA, ModelOptions
from score_flow.errors import UserError
from score_flow.runs.checkpoint import Checkpoints
from score_flow.runs.sharding import BATCH_AXES, state_shardings, to_host
from score_flow.training.ema import combination, gamma_of, n_averages, power_share
from score_flow.training.steps import init_state, make_train_steps
from tests.launch import TINY

STDS = (0.05, 0.1)
EPS = np.finfo(np.float32).eps


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.25, WIDEST_EMA])
def test_the_profile_has_the_width(std):
    """(gamma + 1) s^gamma on [0, 1], whose moments are (gamma + 1)/(gamma + 1 + k)."""
    gamma = gamma_of(std)
    first, second = ((gamma + 1) / (gamma + 1 + k) for k in (1, 2))
    # A difference of moments near 1 cancels 1/std^2 of them.
    assert np.sqrt(second - first**2) == pytest.approx(std, rel=16 * np.finfo(float).eps / std**2)
    assert gamma >= -1e-12


def test_published_exponents():
    assert [round(gamma_of(std), 2) for std in STDS] == [16.97, 6.94]  # Karras et al. 2024, sec. 3.1


@pytest.mark.parametrize("gamma", [0.0, 6.94, 16.97])
def test_the_share_of_an_update(gamma):
    n = np.array([1, 2, 3, 100, 12345, 2_000_000])
    ours = jax.jit(jax.vmap(lambda step: power_share(gamma, step)))(jnp.asarray(n - 1, jnp.int32))
    expected = 1 - (1 - 1 / n.astype(np.longdouble)) ** (gamma + 1)
    np.testing.assert_allclose(ours, expected.astype(float), rtol=8 * EPS)
    assert ours[0] == 1


def averages(trajectory, gamma):
    """The average after each step of a trajectory (n, d), by its definition, in float64."""
    found, mean = [], np.zeros(trajectory.shape[1])
    for n, weights in enumerate(trajectory, 1):
        share = 1 - (1 - 1 / n) ** (gamma + 1)
        mean = mean + share * (weights - mean)
        found.append(mean)
    return np.array(found)


def bound(trajectory, gamma, error):
    """Cauchy-Schwarz: a difference of profiles of zero sum moves sum_k d_k theta_k by no more than |d| |theta - c|."""
    n = len(trajectory)
    norm = np.sqrt((gamma + 1) ** 2 / (2 * gamma + 1) / n)
    return error * norm * np.sqrt(((trajectory - trajectory.mean(0)) ** 2).sum(0))


def test_the_average_weighs_steps_by_its_profile():
    """Step k has the integral of the profile over [k - 1, k]."""
    gamma, n = gamma_of(0.1), 40
    k = np.arange(n + 1) / n
    np.testing.assert_allclose(averages(np.eye(n), gamma)[-1], np.diff(k ** (gamma + 1)), rtol=0, atol=1e-14)


@pytest.mark.parametrize("std", [0.04, 0.05, 0.07, 0.1, 0.15, 0.2])
def test_reconstruction_is_the_average_itself_within_its_error(std):
    """Random walks of 800 steps and a parameter that never moves, from 16 milestones with two widths."""
    steps = np.arange(50, 801, 50)
    walk = np.cumsum(np.random.default_rng(0).normal(size=(800, 3)), axis=0)
    trajectory = np.concatenate([walk, np.full((800, 1), 7.0)], axis=1)
    stored = [averages(trajectory, gamma_of(s))[steps - 1] for s in STDS]
    gammas = np.repeat([gamma_of(s) for s in STDS], len(steps))
    weights, error = combination(np.tile(steps, 2).astype(float), gammas, 800.0, gamma_of(std))
    ours = weights @ np.concatenate(stored)
    direct = averages(trajectory, gamma_of(std))[-1]
    rounding = 1e3 * np.finfo(float).eps * np.abs(weights).sum() * np.abs(trajectory).max()
    assert (np.abs(ours - direct) <= bound(trajectory, gamma_of(std), error) + rounding).all()
    assert ours[-1] == pytest.approx(7.0, abs=rounding)
    assert error < (1e-6 if std in STDS else 0.03)
    # The bound means something: the nearest of what is stored is much further off.
    if std not in STDS:
        nearest = min(np.linalg.norm(s[-1] - direct) for s in stored)
        assert np.linalg.norm(ours - direct) < 0.2 * nearest


def test_more_milestones_make_it_better_and_too_narrow_is_seen():
    def error(n, std):
        steps = np.repeat(np.arange(1.0, n + 1), 2)
        return combination(steps, np.tile([gamma_of(s) for s in STDS], n), float(n), gamma_of(std))[1]

    assert error(1, 0.07) > error(4, 0.07) > error(16, 0.07) > error(64, 0.07)
    assert error(8, 0.005) > 0.5


FLAGS = [*TINY[1:], f"--config.model.ema_std={STDS}", "--config.model.ema_rate=(0.9,)", "--config.network.width=8"]
N, EVERY = 24, 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run, config, folder, the parameters after each of 24 steps): one device, a milestone every 6 steps."""
    config = load("configs/digits.py", FLAGS)
    run = experiment(config)
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), BATCH_AXES)
    shapes, rng = jax.eval_shape(run.init, jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(0.0, 0.2, p.shape), jnp.float32), shapes)
    state = init_state(params, run.loss, run.optimiser, n_ema=3)
    shardings = state_shardings(mesh, state)
    steps = make_train_steps(
        run.loss,
        run.optimiser,
        ema_rates=config.model.ema_rate,
        ema_warmup=True,
        seed=0,
        mesh=mesh,
        shardings=shardings,
        ema_stds=STDS,
    )
    state, history = jax.device_put(state, shardings), []
    images = rng.integers(0, 17, (1, 16, 8, 8, 1), np.uint8)
    checkpoints = Checkpoints(tmp_path_factory.mktemp("run") / "checkpoints")
    meta = {"config": json.loads(config.to_json()), "weights": {"raw": "raw", "ema": "ema"}}
    for step in range(1, N + 1):
        state, _ = steps(state, {"image": jnp.asarray(images), "label": jnp.zeros((1, 16), jnp.int32)})
        history.append(flat(state.params))
        if step % EVERY == 0:
            checkpoints.save(step, {"params": state.params, "ema": list(state.ema)}, meta | {"step": step}, wait=True)
    yield run, config, checkpoints, np.array(history)
    checkpoints.close()


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(to_host(tree))]).astype(float)


def evaluated(trained, **options):
    """(weights, their name) of the newest milestone with settings of config.eval."""
    run, config, checkpoints, _ = trained
    config = with_settings(config, {f"eval.{name}": value for name, value in options.items()})
    return flat(load_params(run, which_of(config), checkpoints, N)), weights_of(checkpoints.meta(N), which_of(config))


@pytest.mark.parametrize("which", [0, 1])
def test_training_keeps_the_averages(trained, which):
    ours, name = evaluated(trained, ema=1 + which)
    assert name == f"EMA power {STDS[which]}"
    expected = averages(trained[-1], gamma_of(STDS[which]))[-1]
    # N updates in float32, each of which rounds and hands on what was rounded before.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2 * N * EPS * np.abs(trained[-1]).max())
    assert evaluated(trained, ema=0)[1] == "EMA 0.9" and evaluated(trained, ema=-1)[1] == "raw"


@pytest.mark.parametrize("std", [0.05, 0.07])
def test_a_run_is_evaluated_with_another_width(trained, std, capsys):
    trajectory = trained[-1]
    ours, name = evaluated(trained, ema_std=std)
    assert name == f"EMA power {std}, reconstructed"
    printed = float(capsys.readouterr().out.split("off by ")[1].split("%")[0]) / 100
    direct = averages(trajectory, gamma_of(std))[-1]
    rounding = 2 * N * EPS * 4 * np.abs(trajectory).max()  # the sum of |weights| is below 4 here
    assert (np.abs(ours - direct) <= bound(trajectory, gamma_of(std), printed + 5e-5) + rounding).all()
    assert np.linalg.norm(ours - direct) < 0.3 * np.linalg.norm(evaluated(trained, ema=2)[0] - direct) or std == 0.05


def test_what_cannot_be_made_is_refused(trained):
    for options, words in (
        ({"ema_std": 0.004}, r"ema_std = 0.004 cannot be made of widths \[0.05, 0.1\] at steps \[6, 12, 18, 24\]"),
        ({"ema": 3}, "config.eval.ema is 3, but the checkpoint has 3"),
    ):
        with pytest.raises(UserError, match=words):
            evaluated(trained, **options)


@pytest.mark.parametrize("extra", [{"imported": {}}, {"config": {"model": {"ema_rate": [0.9]}}}])
def test_runs_without_power_averages_are_refused(trained, tmp_path, extra):
    run, config, _, _ = trained
    meta = {"config": json.loads(config.to_json()), "step": N, "weights": {"raw": "raw", "ema": "ema"}}
    if "config" in extra:
        del meta["config"]["model"]["ema_std"]
    other = Checkpoints(tmp_path)
    other.save(N, {"params": {"x": np.zeros(1)}}, meta | {k: v for k, v in extra.items() if k != "config"}, wait=True)
    with pytest.raises(UserError, match="is made of the averages of model.ema_std, which .* has not"):
        evaluated((run, config, other, None), ema_std=0.07)
    other.close()


@pytest.mark.parametrize("flag, words", [
    ("model.ema_std=0.3", r"config.model.ema_std is \(0.3,\); it must be above 0, at most 0.2886"),
    ("model.ema_std=(0.1,0.)", "config.model.ema_std"), ("model.ema_std=wide", "config.model.ema_std"),
    ("eval.ema_std=0.5", "config.eval.ema_std is 0.5"), ("eval.ema_std=-0.1", "config.eval.ema_std is -0.1"),
])  # fmt: skip
def test_widths_out_of_range_are_refused(flag, words):
    with pytest.raises(UserError, match=words):
        load("configs/digits.py", [f"--config.{flag}"])


def test_runs_from_before_go_on():
    """Their configs know no ema_std: they had none, which is no difference; what is asked for now is one."""
    config = json.loads(load("configs/digits.py", []).to_json())
    del (older := json.loads(json.dumps(config)))["model"]["ema_std"]
    assert differences(older, config, ("model", "path")) == []
    config["model"]["ema_std"] = [0.1]
    assert differences(older, config, ("model",)) == ["model.ema_std: [] -> [0.1]"]


def test_runs_of_older_versions_keep_their_number():
    assert n_averages({"ema_rate": [0.9, 0.99]}) == 2
    assert n_averages(ModelOptions(ema_rate=(0.9,), ema_std=STDS)) == 3


def test_weights_are_named_by_the_checkpoint():
    """The rates that they were trained with, whatever the config says now; raw ones are called so."""
    meta = {"config": {"model": {"ema_rate": [0.5, 0.99], "ema_std": [0.1]}}, "weights": {"raw": "raw", "ema": "ema"}}
    names = ["EMA 0.5", "EMA 0.99", "EMA power 0.1"]
    for index, name in [*enumerate(names), (-1, "raw")]:
        for rates in ("(0.995,)", "(0.9,0.9,0.9)"):
            flags = [f"--config.model.ema_rate={rates}", f"--config.eval.ema={index}"]
            assert weights_of(meta, which_of(load("configs/digits.py", flags))) == name
    with pytest.raises(UserError, match=r"config.eval.ema is 3, but the checkpoint has 3 EMA\(s\)"):
        weights_of(meta, which_of(load("configs/digits.py", ["--config.eval.ema=3"])))
    raw = meta | {"weights": {"raw": "raw", "ema": "raw"}}
    assert weights_of(raw, which_of(load("configs/digits.py", []))) == "raw"
