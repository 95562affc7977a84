"""Small numerical helpers."""

import math

import numpy as np

from score_flow.numerics import mean_and_error

RNG = np.random.default_rng(0)


def test_mean_and_error():
    values = RNG.normal(size=50)
    mean, error = mean_and_error(values)
    np.testing.assert_allclose([mean, error], [values.mean(), np.sqrt(values.var() / 49)], rtol=1e-12)
    mean, error = mean_and_error(np.array([2.0]))
    assert mean == 2.0 and math.isnan(error)
