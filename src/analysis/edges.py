"""The edge alarm: where the best value of a key is the largest or the smallest one that was tried.

The alarm also writes a job file that runs these settings again with values outside the edge.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.curves import direction_of, main_metrics, numbers
from src.analysis.runs import NOT_KNOWN
from src.analysis.settings import (
    differing,
    diverged,
    format_setting,
    format_some,
    format_value,
    groups,
    is_null,
    is_number,
    seeds_of,
    varying,
)
from src.config import KEYS, is_expression, make_config, write_yaml
from src.grid import row_identity
from src.keys import INFERRED_KEYS, Bookkeeping
from src.ranking import NON_SEMANTIC_KEYS, SEEDS, Run, rank
from src.support import ROOT, UserError, bad_value

LEAST = 3  # values with a result: of two, each is an end
BOOKKEEPING = {field.name for field in fields(Bookkeeping)}
OF_ONE_RUN = {"output_dir", "host_name", "wandb_run_name", *INFERRED_KEYS}
REQUESTED = [k for k in sorted(KEYS, key=BOOKKEEPING.__contains__) if k not in OF_ONE_RUN]
ZIP = "ZIP_seeds"
ALIKE = 0.01  # steps or logarithms of ratios that differ by less are the same: 1, 3.16, 10
WIDE = 4  # a series that spans more than this factor is continued by a factor
DIGITS = 6  # significant ones: 0.1 + 0.2 is 0.3
Block = dict[str, list[Any]]  # key -> its values; those of ZIP are mappings


@dataclass(frozen=True)
class Edge:
    """The best value of the key is the outermost one of those tried, in the settings at_edge."""

    key: str
    tried: tuple[float, ...]  # in ascending order
    side: str  # 'largest' or 'smallest'
    value: float  # the best one
    added: tuple[float, ...]  # values that continue `tried` there, the nearest first
    at_edge: list[dict[str, Any]]  # the other varying keys -> their values
    num_settings: int  # in which these values were tried and one has a finite mean

    def __str__(self) -> str:
        """'In 7 of 12 settings the best base_lr is the largest of 1, 2, 4: add 8, 16 (…).'"""
        settings = list(map(format_setting, self.at_edge))
        which = f" ({format_some(settings)})" if any(settings) else ""
        where = f"In {len(settings)} of {self.num_settings} settings the"
        where = where if self.num_settings > 1 else "The"
        tried = list(map(format_value, self.tried))
        tried = tried if len(tried) < 8 else [*tried[:3], "…", *tried[-3:]]
        best = f"best {self.key} is the {self.side} of {', '.join(tried)}"
        return f"{where} {best}: add {', '.join(map(format_value, self.added))}{which}."


def edges(df: pd.DataFrame, metric: str | None = None, *, when: str | float = "last") -> list[Edge]:
    """Where the best value of a key, by the mean over seeds, is the largest or smallest tried.

    metric: by default the first of main_metrics(df). when: as in numbers(). Values that lack
    seeds come after those that do not, as in src/ranking.py; runs that have not ended lack
    nothing yet, and only tell what is tried. Ends that cannot move (a weight decay of 0) and keys
    that move with another are no edges.
    """
    return [edge for found, _, _ in _examined(df, metric, when).values() for edge in found]


def edge_alarm(df: pd.DataFrame, metric: str | None = None, *, when: str | float = "last") -> str:
    """One sentence for each edge and the job file that extends the grid; or that there is none."""
    metric = metric or main_metrics(df)[0]
    examined = _examined(df, metric, when)
    if found := [edge for of_key, _, _ in examined.values() for edge in of_key]:
        sentences = "\n".join([f"By {metric} ({when}):", *map(str, found)])
        return f"{sentences}\n\n{extension(df, found)}"
    if not examined:
        return f"No edges to look for: no setting has results of {LEAST} values of a numeric key."
    where = [
        f"{key} in {f'{judged} of {num} settings' if judged < num else 'all settings'}"
        for key, (_, judged, num) in examined.items()
    ]
    words = f"By {metric} ({when}) the grid is wide enough: no best value is at an edge"
    return f"{words}: {', '.join(where)}."


def _examined(
    df: pd.DataFrame, metric: str | None, when: str | float
) -> dict[str, tuple[list[Edge], int, int]]:
    """Key -> (its edges, in how many settings LEAST values of it have results, all settings)."""
    # More is better; -inf for runs that ended without a number, NaN for those that still run.
    metric = metric or main_metrics(df)[0]
    scores = direction_of(metric) * numbers(df, metric, when).to_numpy()
    state = df.get("state", pd.Series("done", index=df.index))
    is_good = np.isfinite(scores) & (state != "failed").to_numpy() & ~diverged(df)
    scores = np.where(state.isin(("done", "failed")), np.where(is_good, scores, -np.inf), np.nan)
    runs = list(map(Run, seeds_of(df), scores.tolist()))
    table = df[differing(df)].reset_index(drop=True)
    table = table.astype(object).where(table.notna(), None)  # pd.NA cannot be compared
    varied, examined = varying(table), {}
    for key in varied:
        if key not in KEYS or key in BOOKKEEPING or len(_tried(table[key])) < LEAST:
            continue
        num_settings: Counter[tuple] = Counter()  # values tried -> settings with a best one
        at_edge: dict[tuple[tuple, str, float, tuple], list[dict[str, Any]]] = {}
        settings = groups(table, [other for other in table if other != key])
        for values, rows in settings:
            tried = _tried(rows[key])
            side = _best_side(rows[key].tolist(), [runs[i] for i in rows.index], tried)
            num_settings[tried] += side is not None
            series = tried if side == "largest" else tried[::-1]  # ends at the edge
            if side and (added := _added(df, rows.index[0], key, series)):
                others = {k: None if is_null(values[k]) else values[k] for k in varied if k != key}
                at_edge.setdefault((tried, side, series[-1], added), []).append(others)
        found = [Edge(key, *what, at, num_settings[what[0]]) for what, at in at_edge.items()]
        if num_judged := num_settings.total():
            examined[key] = found, num_judged, len(settings)
    return examined


def _tried(values: Iterable[Any]) -> tuple[float, ...]:
    return tuple(sorted({x for x in values if is_number(x) and math.isfinite(x)}))


def _best_side(values: list[Any], runs: Sequence[Run], tried: Sequence[float]) -> str | None:
    """'largest' or 'smallest'; '' where the best value is neither; None where no value is best."""
    of_values: dict[Any, list[Run]] = {}  # what is no number is there as text
    for value, run in zip(values, runs, strict=True):
        of_values.setdefault(value if value in tried else repr(value), []).append(run)
    results = {}  # value -> (seeds that lack nothing, their mean), where a run has ended
    for value, of_value in of_values.items():
        ended = [run for run in of_value if not math.isnan(run.value)]
        (standing,) = rank([ended], 1)
        num_pending = len({run.seed for run in of_value} - {run.seed for run in ended})
        if standing.num_seeds:
            results[value] = standing.num_seeds + num_pending, standing.mean
        elif ended:
            results[value] = 0, -math.inf
    best = max(results.values(), default=(0, 0))
    if sum(value in results for value in tried) < LEAST or best[0] == 0:
        return None
    winners = tuple(value for value, result in results.items() if result == best)
    return {tried[:1]: "smallest", tried[-1:]: "largest"}.get(winners, "")


def _added(df: pd.DataFrame, run: int, key: str, series: tuple[float, ...]) -> tuple[float, ...]:
    """The values that continue the series and that the configuration of this run takes."""
    (requested,) = _requested(df, [run])
    added: list[float] = []
    for value in extrapolate(key, series):
        with suppress(UserError):
            taken = getattr(make_config(requested | {key: value}), key)
            end = (added or series)[-1]  # whole numbers may be rounded to it
            added += [taken] * (taken > end if series[-1] > series[0] else taken < end)
    return tuple(added)


# By hand: numpy and scipy fit polynomials. The line through the logarithms of 1, 2, 5, 10 continues
# with 22.4 where everybody tries 20, and the line through 0.5, 0.9, 0.95 with 1.23.
def extrapolate(key: str, series: Sequence[float]) -> list[float]:
    """At most two values that continue a rising or falling series of tried ones.

    1, 3, 10 is continued by 30, 100. A momentum is continued in its distance from 1. Whole
    numbers stay whole, and what was never negative stays positive.
    """
    if key == "momentum" and min(series) >= 0 and max(series) < 1:
        distances = extrapolate("", [1 - value for value in series])
        return [_rounded(1 - distance, 12) for distance in distances if distance <= 1]
    values = _continued(series)
    if all(isinstance(value, int) for value in series):
        values = [round(value) for value in values]
    return [value for value in values if value > 0 or min(series) < 0]


def _continued(series: Sequence[float]) -> list[float]:
    """Two values: by steps where they are even, by ratios where they repeat, else about as far."""
    end, step = series[-1], (series[-1] - series[0]) / (len(series) - 1)
    stepped = [end]
    for _ in range(2):  # a step that would reach 0 is replaced by half the way there
        last = stepped[-1]
        reaches_zero = step < 0 < last and last + step <= -ALIKE * step
        stepped.append(last / 2 if reaches_zero else last + step)
    if all(math.isclose(b - a, step, rel_tol=ALIKE) for a, b in pairwise(series)):
        return [_rounded(value, DIGITS) for value in stepped[1:]]
    found = stepped[1:]
    if min(series) >= 0 and end > 0:
        positive = [value for value in series if value > 0]  # all, or all but a 0 at the start
        for period, is_decade in ((1, False), (2, True), (3, True), (2, False)):  # 1, 2, 5, 10: 3
            pairs = zip(positive, positive[period:], strict=False)
            logs = [math.log10(b / a) for a, b in pairs]
            mean = math.fsum(logs) / max(1, len(logs))
            is_ten = math.isclose(abs(mean), 1, rel_tol=1e-3)
            is_regular = all(math.isclose(log, mean, rel_tol=ALIKE) for log in logs)
            if is_regular and (is_ten if is_decade else len(logs) > 1):
                first = positive[-period] * 10**mean
                second = (first if period == 1 else positive[1 - period]) * 10**mean
                return [_rounded(first, DIGITS), _rounded(second, DIGITS)]
        if not 0 < max(series) <= WIDE * min(series):
            factor = (positive[-1] / positive[0]) ** (1 / (len(positive) - 1))
            found = [end * factor, end * factor**2]
    # Irregular: two significant digits, and more where those do not lead away from the end.
    for digits in range(2, DIGITS + 1):
        rounded = [_rounded(value, digits) for value in found]
        if [end, *rounded] == sorted({end, *rounded}, reverse=found[0] < end):
            break
    return rounded


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


# ---- The job file ------------------------------------------------------------------------


def extension(df: pd.DataFrame, found: Sequence[Edge], name: str | None = None) -> str:
    """The text of a job file: the runs at the edges again, with the added values.

    name: of the batch, by default '…-edges'. Raises UserError where there is no edge.
    """
    runs = [(edge, run) for edge in found for run in _runs_at(df, edge)]
    if not runs:
        raise bad_value("found", list(found), "at least one edge of these runs")
    batch = str(df["batch"].iloc[0]) if "batch" in df else "grid"
    name = name or re.sub(r"^\d\d-\d\d-\d\d-|-edges$", "", batch) + "-edges"
    folder = Path(str(df["output_dir"].iloc[0] if "output_dir" in df else None))
    results = folder.parents[1] if len(folder.parents) > 1 else Path("results")
    here = next((path for path in (Path.cwd(), ROOT) if results.is_relative_to(path)), None)
    if here:  # a notebook runs in a folder of its own
        output_dir = str(results.relative_to(here))
    else:  # of another machine, say
        output_dir = str(results) if results.is_dir() else results.name
    blocks = _blocks(runs)
    num_runs = sum(math.prod(map(len, block.values())) for block in blocks)
    lines = [f"Is it better still outside the edges of {batch}? Runs: {num_runs:,}"]
    for edge in found:
        side = "above" if edge.side == "largest" else "below"
        lines.append(f"  {edge.key} {side} {format_value(edge.value)}")
    lines.append(f"  python submit_multiple.py jobs/{name}.yaml -s local")

    # Keys that all blocks share, and LIST_edges with the rest; seeds and bookkeeping last.
    apart = {edge.key for edge in found}
    for key in {key for block in blocks for key in block}:
        if len({row_identity({key: block.get(key)}) for block in blocks}) > 1:
            apart.add(key)
    shared = {key: _entry(key, blocks[0][key]) for key in blocks[0] if key not in apart}
    rest = [{key: _entry(key, block[key]) for key in block if key in apart} for block in blocks]
    keys = sorted([*shared, "LIST_edges"], key=lambda k: (k in BOOKKEEPING, k in (*SEEDS, ZIP)))
    details = {"name": name, "output_dir": output_dir}
    parameters = {key: shared.get(key, rest) for key in keys}
    content = write_yaml({"job_details": details, "parameters": parameters})
    return "".join(f"# {line}\n" for line in dict.fromkeys(lines)) + content


def _requested(df: pd.DataFrame, runs: Sequence[int]) -> list[dict[str, Any]]:
    """The configurations that these runs, by position, were requested with; null keys are out."""
    rows = df.iloc[runs][[key for key in REQUESTED if key in df]]
    rows.attrs = {}  # pandas copies them deeply for each cell, which is most of the time
    records = rows.to_dict("records")
    return [{str(k): v for k, v in r.items() if not is_null(v) and v != NOT_KNOWN} for r in records]


def _runs_at(df: pd.DataFrame, edge: Edge) -> list[dict[str, Any]]:
    """All keys of the runs that have the edge's value in its settings, one for each seed."""
    others = list(edge.at_edge[0])
    is_there = df[edge.key].eq(edge.value).fillna(False)  # where a run has no number
    positions = np.flatnonzero(is_there.to_numpy(dtype=bool))
    wanted = {row_identity(setting) for setting in edge.at_edge}
    runs: dict[frozenset, dict[str, Any]] = {}
    for values, rows in groups(df[others].iloc[positions].assign(position=positions), others):
        if row_identity({k: None if is_null(v) else v for k, v in values.items()}) in wanted:
            for requested in _requested(df, rows["position"].tolist()):
                config = make_config(requested)
                run = {key: getattr(config, key) for key in REQUESTED}
                semantic = {k: run[k] for k in run.keys() - NON_SEMANTIC_KEYS}
                runs.setdefault(row_identity(semantic), run)
    return list(runs.values())


def _blocks(runs: Sequence[tuple[Edge, dict[str, Any]]]) -> list[Block]:
    """The settings at an edge with their seeds, in blocks; keys at their defaults are out."""
    defaults = vars(make_config({}))
    keys = {k for edge, run in runs for k in run if run[k] != defaults[k] or k == edge.key}
    settings: dict[frozenset, tuple[Block, list[dict[str, Any]]]] = {}
    for edge, run in runs:
        block = {key: [run[key]] for key in run if key in keys and key not in SEEDS}
        block[edge.key] = list(edge.added)
        _, seeds = settings.setdefault(row_identity(block), (block, []))
        seeds.append({key: run[key] for key in SEEDS if key in keys})
    blocks = []
    for block, seeds in settings.values():
        lists = {key: list(dict.fromkeys(of_run[key] for of_run in seeds)) for key in seeds[0]}
        is_product = math.prod(map(len, lists.values())) == len(seeds)
        blocks.append(block | (lists if is_product else {ZIP: list(seeds)}))
    for key in dict.fromkeys(chain.from_iterable(blocks)):
        alike: dict[frozenset, Block] = {}  # blocks that differ in this key alone become one
        for block in blocks:
            one = alike.setdefault(row_identity(block | {key: None}), dict(block))
            if more := [value for value in block.get(key, []) if value not in one[key]]:
                one[key] = one[key] + more
        blocks = list(alike.values())
    return blocks


def _entry(key: str, values: Sequence[Any]) -> Any:
    """As the grid reads it back; a copy, as YAML marks what it meets twice."""
    if key == ZIP:
        return {seed: [of_run[seed] for of_run in values] for seed in values[0]}
    is_listed = len(values) > 1 or isinstance(values[0], list)
    is_listed |= isinstance(values[0], str) and is_expression(values[0])
    is_listed |= isinstance(values[0], dict) and "n" in values[0]  # which would be a draw
    return deepcopy(list(values) if is_listed else values[0])
