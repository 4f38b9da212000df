"""Intervals of means over seeds."""

import numpy as np
import pytest
from scipy import stats

from src.analysis.scores import mean_interval


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_an_interval_covers_the_mean_as_often_as_it_says(num_seeds):
    """Of 20,000 experiments; the standard error of the share is 0.15 %."""
    draws = np.random.default_rng(num_seeds).normal(3.0, 2.0, size=(num_seeds, 20_000))
    mean, low, high = mean_interval(draws)
    np.testing.assert_allclose(mean, draws.mean(axis=0))
    covered = ((low < 3.0) & (high > 3.0)).mean()
    assert 0.94 < covered < 0.96


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_it_covers_accuracies_as_well(num_seeds):
    """Shares of 2,000 examples that are right, of networks that differ by their seeds."""
    rng = np.random.default_rng(num_seeds)
    skill = rng.beta(95, 5, size=(num_seeds, 20_000))  # skewed: 0.95, rarely 0.9
    _, low, high = mean_interval(rng.binomial(2000, skill) / 2000)
    assert ((low < 0.95) & (high > 0.95)).mean() > 0.93


def test_it_is_that_of_scipy():
    values = np.array([[0.2, 1.0], [0.5, 1.1], [0.9, 1.3], [0.4, 0.9]])
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    _, low, high = mean_interval(values)
    np.testing.assert_allclose([low, high], [expected.low, expected.high])


def test_one_seed_has_a_mean_and_no_interval():
    mean, low, high = mean_interval(np.array([[1.0, 2.0]]))
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan([low, high]).all()
    assert np.isnan(mean_interval(np.zeros((0, 2)))).all()


@pytest.mark.parametrize("num_seeds", [2, 3, 7])
def test_values_that_are_all_equal_have_no_interval(num_seeds):
    """One without width would say that the mean is known."""
    mean, low, high = mean_interval(np.full((num_seeds, 2), 0.1))
    np.testing.assert_allclose(mean, [0.1, 0.1])
    assert np.isnan([low, high]).all()


def test_a_nan_spoils_its_own_point_alone():
    mean, low, high = mean_interval(np.array([[1.0, np.nan], [2.0, 1.0]]))
    assert np.isnan([mean[1], low[1], high[1]]).all()
    assert (mean[0], low[0], high[0]) == pytest.approx((1.5, 1.5 - 6.353, 1.5 + 6.353), abs=1e-3)
