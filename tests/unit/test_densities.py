"""Kernel densities and their divergence, against closed forms for normal distributions."""

import numpy as np
import pytest
from scipy.stats import gaussian_kde, norm

from safebook.densities import bandwidth, divergence, grid, log_density
from safebook.errors import InputError


def quantiles(mean=0.0, spread=1.0, count=4000):
    """A sample that is as normal as one can be: no luck is involved."""
    return norm.ppf((np.arange(count) + 0.5) / count, mean, spread)


@pytest.mark.parametrize(("mean", "spread"), [(0.5, 1.0), (0.0, 1.5), (-0.3, 1.2), (2.0, 2.0)])
def test_divergence_of_two_normals_is_the_closed_form(mean, spread):
    """Smoothing with width h makes N(m, s^2) into N(m, s^2 + h^2), whose divergence is known."""
    first, second = quantiles(), quantiles(mean, spread)
    h = bandwidth(first)
    a, b = 1 + h**2, spread**2 + h**2
    wanted = 0.5 * (a / b + mean**2 / b - 1 + np.log(b / a))
    assert divergence(first, second) == pytest.approx(wanted, rel=0.02)


def test_divergence_is_zero_only_for_the_same_sample_and_not_symmetric():
    first, second = quantiles(), quantiles(0.0, 3.0)
    assert divergence(first, first) == pytest.approx(0, abs=1e-12)
    assert divergence(first, second) > 0.3
    assert divergence(second, first) > 2 * divergence(first, second)


def test_divergence_does_not_depend_on_units_or_origin():
    first, second = quantiles(count=300), quantiles(0.4, 1.2, 200)
    assert divergence(5 + 1e-3 * first, 5 + 1e-3 * second) == pytest.approx(divergence(first, second), 1e-6)


def test_far_apart_samples_have_a_large_finite_divergence():
    far = divergence(quantiles(), quantiles(100.0))
    assert np.isfinite(far) and far > 1000


def test_density_is_that_of_scipy_and_sums_to_one():
    values = np.random.default_rng(0).normal(size=150)
    h = bandwidth(values)
    at = grid(values, h)
    ours = np.exp(log_density(values, at, h))
    np.testing.assert_allclose(ours, gaussian_kde(values, h / values.std(ddof=1))(at), rtol=1e-10)
    assert np.trapezoid(ours, at) == pytest.approx(1, abs=1e-5)


def test_bandwidth_is_silvermans():
    values = np.random.default_rng(1).normal(2.0, 3.0, 500)
    low, high = np.quantile(values, [0.25, 0.75])
    assert bandwidth(values) == pytest.approx(0.9 * min(values.std(), (high - low) / 1.34) * 500**-0.2)
    assert bandwidth(np.array([0.0] * 9 + [1.0])) > 0  # no middle half, and yet a spread


@pytest.mark.parametrize("bad", [[1.0], [2.0, 2.0], [0.0, np.nan], [[0.0, 1.0]]])
def test_samples_without_a_spread_are_refused(bad):
    with pytest.raises(InputError, match="values"):
        bandwidth(np.array(bad))
