"""The ranking of settings: which one is best, over seeds. It is the only ranking of the project.

A setting is a configuration without its seeds: runs that differ in SEEDS and in NON_SEMANTIC_KEYS
alone belong to one setting. report.py with its JSON and its page, digests, choose(), table() and
the plots all use this ranking. The file imports neither numpy nor pandas, as report.py starts
without them.

The rule: the value of a run is that of its last evaluated epoch. A run that diverged or failed,
or whose value is not finite, has no value. The value of a setting is the mean over its seeds that
have a value. A setting is complete when as many of its seeds have a value as any setting of the
grid has seeds at all; so runs that were never made count as missing. Complete settings come
first, by their mean; then the others, by how many seeds they lack, then by their mean. Settings
in which no run has a value come last.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

SEEDS = ("seed_model", "seed_training")  # the keys in which the runs of one setting differ
# Keys that say where and how a run is executed, or what is measured beside; not what it computes.
# Runs that differ in them belong to one setting, and a resumed run may change them: they change
# rounding at most, or how soon a divergence is noticed.
NON_SEMANTIC_KEYS = {
    *("log_interval", "log_interval_eval", "log_to_stdout", "output_dir", "save_plot"),
    *("profile", "system_interval", "metrics"),
    *("device", "host_name", "multi_gpu", "num_workers", "data_dir", "data_download"),
    *("compile", "channels_last"),
    *("trackers", "wandb", "wandb_project_name", "wandb_run_name", "wandb_tags"),
    *("checkpoint_minutes", "keep_state", "keep_checkpoints"),
}


class Run(NamedTuple):
    """What the ranking needs to know of a run."""

    seed: Hashable
    value: float  # not finite: the run has no value
    is_diverged: bool = False  # then the value does not count


@dataclass(frozen=True)
class Standing:
    """The result of one setting: what rank() returns of it."""

    index: int  # of the setting, in the order in which rank() was given the settings
    values: tuple[float, ...]  # of each seed that has a value
    runs: tuple[tuple[int, ...], ...]  # for each of these seeds the positions of its runs
    num_diverged: int  # seeds without a value because they diverged
    num_expected: int  # seeds of a complete setting

    @property
    def num_seeds(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """NaN where no seed has a value. Equal values have equal means, in whatever order."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan

    @property
    def std(self) -> float:
        """The sample standard deviation over the seeds; NaN for fewer than two of them."""
        if len(self.values) < 2:
            return math.nan
        squares = math.fsum((value - self.mean) ** 2 for value in self.values)
        return math.sqrt(squares / (len(self.values) - 1))

    def order(self, sign: int) -> tuple[int, float]:
        """Lower is better. sign: 1 where a higher value is better, -1 where a lower one is."""
        return -self.num_seeds, -sign * self.mean if self.values else math.inf


def rank(settings: Sequence[Sequence[Run]], sign: int) -> list[Standing]:
    """The standings of the settings, the best first; equal ones stay in their order.

    settings: the runs of each setting. A seed that ran twice counts once, by the mean of those of
    its runs that have a value: a failed run was repeated.
    """
    standings = []
    for index, runs in enumerate(settings):
        with_value: dict[Hashable, list[int]] = {}  # seed -> positions of its runs with a value
        diverged = set()
        for position, run in enumerate(runs):
            positions = with_value.setdefault(run.seed, [])
            if run.is_diverged:
                diverged.add(run.seed)
            elif math.isfinite(run.value):
                positions.append(position)
        found = [tuple(positions) for positions in with_value.values() if positions]
        values = [
            math.fsum(runs[p].value for p in positions) / len(positions) for positions in found
        ]
        num_diverged = sum(not with_value[seed] for seed in diverged)
        standings.append(
            Standing(index, tuple(values), tuple(found), num_diverged, len(with_value))
        )
    most = max((standing.num_expected for standing in standings), default=0)
    standings = [replace(standing, num_expected=most) for standing in standings]
    return sorted(standings, key=lambda standing: standing.order(sign))
