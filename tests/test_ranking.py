"""The one ranking of settings."""

import math
from itertools import permutations

import pytest

from src.ranking import Run, Standing, rank

NOTHING = math.nan


def seeds(*values: float) -> list[Run]:
    """A run a seed."""
    return [Run(seed, value) for seed, value in enumerate(values)]


def ranked(*settings: list[Run], sign: int = 1) -> list[int]:
    return [standing.index for standing in rank(settings, sign)]


def only(*settings: list[Run]) -> Standing:
    """The first of the settings."""
    return next(standing for standing in rank(settings, 1) if standing.index == 0)


def test_the_best_mean_is_first():
    assert ranked(seeds(0.9, 0.5), seeds(0.8, 0.8), seeds(0.1, 0.2)) == [1, 0, 2]
    assert ranked(seeds(0.9, 0.5), seeds(0.8, 0.8), seeds(0.1, 0.2), sign=-1) == [2, 0, 1]
    assert ranked(seeds(0.5), seeds(0.7), seeds(0.5)) == [1, 0, 2]  # equal ones as they came
    assert rank([], 1) == []


@pytest.mark.parametrize(
    "lacking",
    [
        [Run(0, 0.9)],  # the other seed was never made
        [Run(0, 0.9), Run(1, NOTHING)],
        [Run(0, 0.9), Run(1, math.inf)],
        [Run(0, 0.9), Run(1, 0.99, is_diverged=True)],
    ],
)
def test_a_setting_that_lacks_a_seed_is_behind_all_that_lack_none(lacking):
    assert ranked(lacking, seeds(0.2, 0.1), seeds(0.3, 0.4)) == [2, 1, 0]
    assert only(lacking, seeds(0.2, 0.1)).num_seeds == 1
    assert only(lacking, seeds(0.2, 0.1)).num_expected == 2


def test_those_that_lack_seeds_are_by_how_many_then_by_their_mean_and_those_without_value_last():
    settings = [seeds(0.9), seeds(0.5, 0.5), seeds(NOTHING, NOTHING, NOTHING), seeds(0.6, 0.6)]
    settings += [seeds(0.1, 0.1, 0.1), []]
    assert ranked(*settings) == [4, 3, 1, 0, 2, 5]


def test_mean_spread_and_counts():
    found = only([*seeds(1.0, 2.0, 4.0), Run(3, NOTHING), Run(4, 9.0, is_diverged=True)])
    assert (found.num_seeds, found.num_expected, found.num_diverged) == (3, 5, 1)
    assert found.mean == pytest.approx(7 / 3)
    assert found.std == pytest.approx(1.5275252316519468)
    assert math.isnan(only(seeds(1.0)).std)
    assert math.isnan(only(seeds(NOTHING)).mean)
    values = [0.1, 0.2, 0.3, 1e9]
    assert len({only(seeds(*order)).mean for order in permutations(values)}) == 1


def test_a_seed_that_ran_twice_counts_once_by_what_came_to_a_value():
    runs = [Run(7, NOTHING), Run(7, 0.4), Run(7, 0.6), Run(7, 9.0, is_diverged=True), Run(8, 1.0)]
    found = only(runs)
    assert (found.values, found.runs) == ((0.5, 1.0), ((1, 2), (4,)))
    assert (found.num_diverged, found.num_expected) == (0, 2)
    assert only([Run(7, NOTHING), Run(7, 9.0, is_diverged=True)]).num_diverged == 1
