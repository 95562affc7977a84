"""The affine map of pixels against its closed forms, in every number of levels and every range."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_flow.build import build_scaling
from score_flow.config.options import DataOptions
from score_flow.data.scaling import Scaling, random_flip
from score_flow.errors import UserError

RANGES = [(-1.0, 1.0), (0.0, 1.0), (-3.0, 5.0)]
LEVELS = [2, 17, 100, 256]
every_scaling = pytest.mark.parametrize(
    "scaling", [Scaling(*ends, levels) for ends in RANGES for levels in LEVELS], ids=str
)
every_cell = pytest.mark.parametrize("centred", [False, True], ids=["over the range", "around levels"])


@every_scaling
def test_normalise_meets_both_ends_and_is_undone(scaling):
    v = jnp.arange(scaling.levels, dtype=jnp.uint8)
    x = scaling.normalise(v)
    assert x.dtype == jnp.float32
    assert (float(x[0]), float(x[-1])) == (scaling.low, scaling.high)
    np.testing.assert_array_equal(scaling.quantise(x), v)
    np.testing.assert_array_equal(
        jax.jit(lambda v: scaling.quantise(scaling.normalise(v)))(v), v
    )  # however XLA fuses it


@every_scaling
def test_dequantise_fills_the_range_and_is_undone(scaling):
    v = jnp.broadcast_to(jnp.arange(scaling.levels, dtype=jnp.uint8)[:, None], (scaling.levels, 33))
    # the margin covers float32: (v + u) / levels is right to 2^-24, so levels * unit to 256 * 2^-22 = 2^-14 at worst
    u = jnp.broadcast_to(jnp.linspace(2.0**-10, 1 - 2.0**-10, 33), v.shape)
    x = scaling.dequantise(v, u)
    np.testing.assert_array_equal(scaling.quantise(x, dequantised=True), v)
    ends = scaling.dequantise(jnp.array([0, scaling.levels - 1]), jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(ends, [scaling.low, scaling.high], rtol=2**-22)


@every_scaling
def test_to_unit_is_the_inverse_of_the_range(scaling):
    unit = jnp.linspace(0, 1, 101)
    width = max(abs(scaling.low), abs(scaling.high)) / (scaling.high - scaling.low)
    back = scaling.to_unit(scaling.low + (scaling.high - scaling.low) * unit)
    np.testing.assert_allclose(back, unit, atol=4 * width * 2**-24 + 2**-24)


@every_scaling
def test_quantise_clips_and_never_decreases(scaling):
    x = jnp.linspace(2 * scaling.low - scaling.high, 2 * scaling.high - scaling.low, 2001)
    for dequantised in (False, True):
        level = np.asarray(scaling.quantise(x, dequantised=dequantised)).astype(int)
        assert (level[0], level[-1]) == (0, scaling.levels - 1)
        assert (np.diff(level) >= 0).all()


def test_quantise_is_the_published_rule():
    """floor(clip(255 unit, 0, 255)), except within the guard just below a level."""
    x = jax.random.uniform(jax.random.key(0), (4096,), minval=-1.2, maxval=1.2)
    exact = np.clip(255 * (np.asarray(x, np.float64) + 1) / 2, 0, 255)
    clear = 1 - exact % 1 > 2**-11
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(Scaling().quantise(x))[clear], np.floor(exact)[clear])


@every_scaling
@every_cell
def test_bits_offset_turns_densities_into_bits_of_levels(scaling, centred):
    """A density that is constant on each cell has exactly the code length of its levels, whatever the range."""
    probability = np.arange(1.0, scaling.levels + 1)
    probability /= probability.sum()
    scaling = replace(scaling, centred=centred)
    ends = scaling.dequantise(jnp.arange(2), jnp.zeros(2))
    cell = (scaling.high - scaling.low) / (scaling.levels - centred)
    assert float(ends[1] - ends[0]) == pytest.approx(cell, rel=1e-5)
    for mass in (probability, np.full(scaling.levels, 1 / scaling.levels)):
        bits = -np.log(mass / cell) / np.log(2) + scaling.bits_offset  # one dimension
        np.testing.assert_allclose(bits, -np.log2(mass), rtol=1e-12, atol=1e-12)


@every_scaling
def test_centred_cells_lie_around_levels(scaling):
    v = jnp.arange(scaling.levels, dtype=jnp.uint8)
    x = replace(scaling, centred=True).dequantise(v, jnp.full(v.shape, 0.5))
    np.testing.assert_array_equal(x, scaling.normalise(v))


def test_cells_of_inset_levels_are_vdms():
    """x = 2 (v + u) / 256 - 1, of which the level, 2 (v + 1/2) / 256 - 1, is the middle (i-DODE's uniform case)."""
    scaling = build_scaling(DataOptions(inset=True), 256, (), noisy=False)
    v, u = jnp.arange(256, dtype=jnp.uint8), jnp.linspace(0, 1, 256)
    np.testing.assert_allclose(scaling.normalise(v), (np.arange(256) + 0.5) / 128 - 1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(scaling.dequantise(v, u), (np.arange(256) + np.asarray(u)) / 128 - 1, rtol=0, atol=1e-6)
    assert scaling.bits_offset == pytest.approx(7, abs=1e-12)


def test_bits_offset_of_the_uniform_density():
    d = 48
    log_prob = -d * np.log(2.0)  # uniform on [-1, 1]^d
    assert -log_prob / (d * np.log(2)) + Scaling().bits_offset == pytest.approx(8, abs=1e-14)
    assert Scaling().bits_offset == 7
    assert Scaling(0.0, 1.0).bits_offset == 8


@pytest.mark.parametrize(
    "fields", [dict(low=1.0), dict(low=2.0), dict(high=float("inf")), dict(levels=1), dict(levels=257)]
)
def test_scaling_refuses(fields):
    with pytest.raises(UserError, match="scaling.*got.*allowed"):
        Scaling(**fields)


def test_random_flip_depends_on_the_own_key_only():
    keys = jax.random.split(jax.random.key(0), 400)
    images = jax.random.normal(jax.random.key(1), (400, 2, 3, 1))
    flipped = random_flip(keys, images)
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(flipped[~mirrored], images[~mirrored])
    assert abs(int(mirrored.sum()) - 200) < 4 * 10  # standard deviation sqrt(400) / 2 = 10
    np.testing.assert_array_equal(random_flip(keys[5:7], images[5:7]), flipped[5:7])
