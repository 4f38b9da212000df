"""The ranking of settings: what is best, over seeds. There is no other one in this repository.

report.py with its JSON and its page, digests, choose(), table() and the pictures all rank by it.
It needs neither numpy nor pandas, for which a look at a batch is not to wait.

The rule: the value of a run is that of its last evaluated epoch. A run that diverged or failed,
or whose value is not finite, has none. Runs that differ in their seeds only are one setting,
whose mean is over the seeds that have a value. A setting is complete when it has as many of those
as any setting of the grid has seeds at all, so that runs that were never made are missing too.
Complete settings come first, by their mean; then the others, by how many seeds they lack, then by
their mean; those in which no run has a value come last.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

SEEDS = ("seed_model", "seed_training")  # the keys in which the runs of one setting differ
# Keys that say how to run, not what: they make no other setting, and may differ from those of an
# earlier attempt. At most they change rounding, or how soon a divergence is seen.
WITHOUT_EFFECT = {"log_interval", "log_interval_eval", "log_to_stdout", "output_dir", "save_plot"}
WITHOUT_EFFECT |= {"profile", "system_interval"}
WITHOUT_EFFECT |= {"device", "host_name", "multi_gpu", "num_workers", "data_dir", "data_download"}
WITHOUT_EFFECT |= {"compile", "channels_last"}
WITHOUT_EFFECT |= {"trackers", "wandb", "wandb_project_name", "wandb_run_name", "wandb_tags"}
WITHOUT_EFFECT |= {"checkpoint_minutes", "keep_state", "keep_checkpoints"}


class Run(NamedTuple):
    """What the ranking knows of a run."""

    seed: Hashable
    value: float  # not finite: it has none
    is_diverged: bool = False  # then its value does not count, whatever it was


@dataclass(frozen=True)
class Standing:
    """What the runs of one setting came to."""

    index: int  # of the setting among those that were ranked
    values: tuple[float, ...]  # of the seeds that have one
    runs: tuple[tuple[int, ...], ...]  # of each of these seeds its runs with a value, by position
    num_diverged: int  # seeds that have none, as they diverged
    num_expected: int  # seeds that a complete setting has

    @property
    def num_seeds(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """NaN where no seed has a value. Equal values have equal means, in whatever order."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """The sample standard deviation over the seeds; NaN for less than two of them."""
        if len(self.values) < 2:
            return math.nan
        squares = math.fsum((value - self.mean) ** 2 for value in self.values)
        return math.sqrt(squares / (len(self.values) - 1))

    def order(self, sign: int) -> tuple[int, float]:
        """Lower is better. sign: 1 where more is better, -1 where less is."""
        return -self.num_seeds, -sign * self.mean if self.values else math.inf


def rank(settings: Sequence[Sequence[Run]], sign: int) -> list[Standing]:
    """The settings, the best one first; equal ones stay in their order.

    settings: the runs of each. A seed that ran twice counts once, by the mean of the runs that
    came to a value: one that failed was repeated.
    """
    standings = [_standing(index, runs) for index, runs in enumerate(settings)]
    most = max((standing.num_expected for standing in standings), default=0)
    standings = [replace(standing, num_expected=most) for standing in standings]
    return sorted(standings, key=lambda standing: standing.order(sign))


def _standing(index: int, runs: Sequence[Run]) -> Standing:
    """Of a setting by itself: it expects the seeds that it has."""
    of_seeds: dict[Hashable, list[int]] = {}
    diverged = set()
    for position, run in enumerate(runs):
        came = of_seeds.setdefault(run.seed, [])
        if run.is_diverged:
            diverged.add(run.seed)
        elif math.isfinite(run.value):
            came.append(position)
    there = [tuple(came) for came in of_seeds.values() if came]
    values = [math.fsum(runs[p].value for p in came) / len(came) for came in there]
    num_diverged = sum(not of_seeds[seed] for seed in diverged)
    return Standing(index, tuple(values), tuple(there), num_diverged, len(of_seeds))
