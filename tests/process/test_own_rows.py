"""Rows of one's own: a prediction, a grid, a law of time and a weighting of another package, by dotted name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.build import build_conditioning, build_loss, build_model
from score_flow.config.loading import load
from score_flow.data.preprocessing import Preprocessing
from score_flow.data.scaling import Scaling
from score_flow.errors import UserError
from score_flow.paths.linear import Linear
from score_flow.process.grid import choose, listed
from score_flow.process.prediction import Estimate

LAB = """
import jax
import jax.numpy as jnp
import numpy as np

from score_flow.config.hints import Positive
from score_flow.process.prediction import Estimate, Prediction
from score_flow.process.times import TimeSampler

# twice the noise
twice = Prediction(
    target=lambda e, c: 2 * e.noise,
    decode=lambda y, x, c: Estimate((x - c.sigma * y / 2) / c.alpha, y / 2),
    gain=lambda c: 0.5 * jnp.ones_like(c.alpha),
)


def cubic(path, n_steps, t_min, t_max):
    return np.append(t_max * np.linspace(1, (t_min / t_max) ** (1 / 3), n_steps + 1)[:-1] ** 3, t_min)


def late(path, t_min, t_max=1.0, power: Positive = 2.0):
    def sample(state, key, b):
        return t_max - (t_max - t_min) * jax.random.uniform(key, (b,)) ** power, jnp.ones(b)

    return TimeSampler(lambda: (), sample, lambda state, t, losses: state)


def edm(c, *, data_std):
    return 1 + (c.sigma / (c.alpha * data_std)) ** 2


number = 3
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    (tmp_path / "lab_of_rows.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path)
    import lab_of_rows

    return lab_of_rows


def loss_of(*flags):
    """The loss that a config describes, for images of one channel."""
    config = load("configs/digits.py", [f"--config.{flag}" for flag in flags])
    conditioning = build_conditioning(config, 0)
    model = build_model(config, 1, conditioning)
    return build_loss(config, model, Preprocessing(Scaling(), conditioning, False, False))


def test_a_prediction_of_ones_own(lab):
    prediction = loss_of("model.prediction=lab_of_rows.twice").model.prediction
    assert prediction is lab.twice
    x0, noise, c = jnp.ones(3), jnp.arange(3.0), Linear().at(jnp.asarray(0.25))
    decoded = prediction.decode(prediction.target(Estimate(x0, noise), c), c.alpha * x0 + c.sigma * noise, c)
    np.testing.assert_allclose(decoded[0], x0, rtol=1e-6)


def test_a_grid_of_ones_own(lab):
    assert choose("config.sampling.grid", "lab_of_rows.cubic") is lab.cubic
    config = load("configs/digits.py", ["--config.sampling.name=heun", "--config.sampling.grid=lab_of_rows.cubic"])
    assert config.sampling.arguments["grid"] == "lab_of_rows.cubic"
    assert not listed("lab_of_rows.cubic") and listed("(1.0, 0.5)") and listed((1.0, 0.5))


def test_a_law_of_time_of_ones_own(lab):
    own = "training.time_sampler.name=lab_of_rows.late"
    flags = (own, "training.time_sampler.power=3.0", "training.smallest_time=.5")
    t, weight = loss_of(*flags).times.sample((), jax.random.key(0), 1000)
    assert 0.5 <= t.min() < 0.6 and 0.99 < t.max() <= 1.0 and (weight == 1).all()
    with pytest.raises(UserError, match="config.training.time_sampler.power is -1.0; it must be above 0"):
        loss_of(own, "training.time_sampler.power=-1.0")
    with pytest.raises(UserError, match="config.training.time_sampler.t_min cannot be given"):
        loss_of(own, "training.time_sampler.t_min=0.1")


def test_a_weighting_of_ones_own_sees_what_it_asks_for(lab):
    flags = ("training.weighting=lab_of_rows.edm", "model.data_std=0.3")
    weighting, c = loss_of(*flags).weighting, Linear().at(jnp.asarray([0.25, 0.5]))
    np.testing.assert_allclose(weighting(c), lab.edm(c, data_std=0.3), rtol=1e-6)
    assert weighting is loss_of(*flags).weighting  # equal configs share one compilation
    with pytest.raises(UserError, match="min_snr_gamma is 3.0, which training.weighting = lab_of_rows.edm has no use"):
        loss_of(*flags, "training.min_snr_gamma=3.0")


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("model.prediction=lab_of_rows.cubic", "config.model.prediction is .* no Prediction but function"),
        ("training.weighting=lab_of_rows.number", "config.training.weighting is .* no function but int"),
        ("training.weighting=lab_of_rows.none", "lab_of_rows has no none"),
        ("training.time_sampler.name=no_lab.late", "time_sampler.name is 'no_lab.late'; there is no package no_lab"),
    ],
)
def test_what_is_no_such_row_is_refused_in_one_line(lab, flag, said):
    with pytest.raises(UserError, match=said) as error:
        loss_of(flag)
    assert "\n" not in str(error.value)
