"""Bootstrap intervals of means."""

import numpy as np

from src.analysis.intervals import mean_interval


def test_an_interval_lies_around_the_mean_and_covers_it_about_as_often_as_it_says():
    draws = np.random.default_rng(1).normal(size=(20, 500))  # 500 experiments of 20 seeds
    mean, low, high = mean_interval(draws)
    np.testing.assert_allclose(mean, draws.mean(axis=0))
    assert ((low < mean) & (mean < high)).all()
    covered = ((low < 0) & (high > 0)).mean()
    assert 0.88 < covered < 0.97
    np.testing.assert_equal(mean_interval(draws), (mean, low, high))  # the same again


def test_one_seed_has_a_mean_and_no_interval():
    mean, low, high = mean_interval(np.array([[1.0, 2.0]]))
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan([low, high]).all()
    assert np.isnan(mean_interval(np.zeros((0, 2)))).all()


def test_equal_values_have_an_interval_without_width():
    assert [float(x) for x in mean_interval(np.array([0.5, 0.5]))] == [0.5, 0.5, 0.5]


def test_a_nan_spoils_its_own_point_alone():
    mean, low, high = mean_interval(np.array([[1.0, np.nan], [2.0, 1.0]]))
    assert np.isnan([mean[1], low[1], high[1]]).all()
    assert (mean[0], low[0], high[0]) == (1.5, 1.0, 2.0)
