"""The edge alarm: where the best value of a key is the outermost tried, and a job that goes on."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.analysis.beyond import beyond
from src.analysis.curves import direction_of, main_metrics, numbers
from src.analysis.run_files import NOT_KNOWN
from src.analysis.settings import (
    differing,
    groups,
    is_null,
    label,
    seeds_of,
    shown,
    varying,
)
from src.config import INFERRED_KEYS, KEYS, is_expression, make_config, write_yaml
from src.grid import row_identity
from src.keys import Bookkeeping
from src.ranking import NON_SEMANTIC_KEYS, SEEDS, Run, rank
from src.support import ROOT, UserError, bad_value

LEAST = 3  # values with a result: of two, each is an end
MOST_SHOWN = 3  # settings, in a sentence
BOOKKEEPING = {field.name for field in fields(Bookkeeping)}
OF_ONE_RUN = {"output_dir", "host_name", "wandb_run_name", *INFERRED_KEYS}
ASKED = [key for key in sorted(KEYS, key=BOOKKEEPING.__contains__) if key not in OF_ONE_RUN]
BEYOND = {"largest": "above", "smallest": "below"}
ZIP = "ZIP_seeds"
Block = dict[str, list[Any]]  # key -> its values; those of ZIP are mappings


@dataclass(frozen=True)
class Edge:
    """The best value of the key is the outermost one of those tried, in the settings at_edge."""

    key: str
    tried: tuple[float, ...]  # from the smallest on
    side: str  # 'largest' or 'smallest'
    value: float  # the best one
    added: tuple[float, ...]  # from there outwards
    at_edge: list[dict[str, Any]]  # the other varying keys -> their values
    num_settings: int  # in which these values were tried and one has a finite mean

    def __str__(self) -> str:
        """'In 7 of 12 settings the best base_lr is the largest of 1, 2, 4: add 8, 16 (…).'"""
        some = [label(setting) for setting in self.at_edge[:MOST_SHOWN]]
        some += ["…"] * (len(self.at_edge) > MOST_SHOWN)
        which = f" ({'; '.join(some)})" if any(some) else ""
        where = f"In {len(self.at_edge)} of {self.num_settings} settings the"
        where = where if self.num_settings > 1 else "The"
        best = f"best {self.key} is the {self.side} of {_listed(self.tried)}"
        return f"{where} {best}: add {_listed(self.added)}{which}."


@dataclass(frozen=True)
class Looked:
    """At one key."""

    edges: list[Edge]
    num_judged: int  # settings with results of LEAST values
    num_settings: int

    def __str__(self) -> str:
        """'3 of 4 settings'"""
        some = f"{self.num_judged} of {self.num_settings} settings"
        return some if self.num_judged < self.num_settings else "all settings"


def edges(df: pd.DataFrame, metric: str | None = None, *, when: str | float = "last") -> list[Edge]:
    """Where the best value of a key, by the mean over seeds, is the largest or smallest tried.

    metric: the first of main_metrics(df) where none is given. when: as in numbers(). Values are
    compared as src/ranking.py says: those that lack seeds come after those that do not. Runs
    that have not ended lack nothing yet, and only tell what is tried. No edges: ends that cannot
    move (a weight decay of 0), keys that move with another.
    """
    return [edge for looked in _examined(df, metric, when).values() for edge in looked.edges]


def edge_alarm(df: pd.DataFrame, metric: str | None = None, *, when: str | float = "last") -> str:
    """A sentence an edge and the job file that extends the grid; or that there is no edge."""
    metric = metric or main_metrics(df)[0]
    examined = _examined(df, metric, when)
    if found := [edge for looked in examined.values() for edge in looked.edges]:
        sentences = "\n".join([f"By {metric} ({when}):", *map(str, found)])
        return f"{sentences}\n\n{extension(df, found)}"
    if not examined:
        return f"No edges to look for: no setting has results of {LEAST} values of a numeric key."
    where = ", ".join(f"{key} in {looked}" for key, looked in examined.items())
    return f"By {metric} ({when}) no best value lies at an edge that can move: {where}."


def _listed(values: Sequence[float]) -> str:
    """'1, 2, 4'; of many the first and the last ones."""
    texts = [shown(value) for value in values]
    return ", ".join(texts if len(texts) < 8 else [*texts[:3], "…", *texts[-3:]])


# ---- Looking for edges -------------------------------------------------------------------


def _examined(df: pd.DataFrame, metric: str | None, when: str | float) -> dict[str, Looked]:
    """The keys of which some setting has a best number."""
    scores = _scores(df, metric or main_metrics(df)[0], when)
    table = df[differing(df)].reset_index(drop=True)
    table = table.astype(object).where(table.notna(), None)  # pd.NA cannot be compared
    varied = varying(table)
    known = KEYS.keys() - BOOKKEEPING
    keys = [key for key in varied if key in known and len(_tried(table[key])) >= LEAST]
    examined = {key: _edges_of(df, table, scores, key=key, varied=varied) for key in keys}
    return {key: looked for key, looked in examined.items() if looked.num_judged}


def _scores(df: pd.DataFrame, metric: str, when: str | float) -> np.ndarray:
    """(runs,) More is better; -inf for runs that ended without a number, NaN for those that run."""
    scores = direction_of(metric) * numbers(df, metric, when).to_numpy()
    state = df.get("state", pd.Series("done", index=df.index))
    outcome = df.get("outcome", pd.Series("finished", index=df.index))
    is_good = np.isfinite(scores) & ((state != "failed") & (outcome != "diverged")).to_numpy()
    return np.where(state.isin(("done", "failed")), np.where(is_good, scores, -np.inf), np.nan)


def _edges_of(
    df: pd.DataFrame, table: pd.DataFrame, scores: np.ndarray, *, key: str, varied: Sequence[str]
) -> Looked:
    num_settings: Counter[tuple] = Counter()
    at_edge: dict[tuple[tuple, str, float, tuple], list[dict[str, Any]]] = {}
    settings, seeds = groups(table, [other for other in table if other != key]), seeds_of(df)
    for values, rows in settings:
        tried = _tried(rows[key])
        runs = [Run(seeds[i], float(scores[i])) for i in rows.index]
        side = _side(_reached(rows[key].tolist(), runs, tried), tried)
        num_settings[tried] += side is not None
        row = tried if side == "largest" else tried[::-1]  # ends at the edge
        if side and (added := _added(df, rows.index[0], key, row)):
            setting = {k: _nullable(values[k]) for k in varied if k != key}
            at_edge.setdefault((tried, side, row[-1], added), []).append(setting)
    found = [Edge(key, *what, at, num_settings[what[0]]) for what, at in at_edge.items()]
    return Looked(found, num_settings.total(), len(settings))


def _tried(values: Iterable[Any]) -> tuple[float, ...]:
    found = {x for x in values if isinstance(x, int | float) and not isinstance(x, bool)}
    return tuple(sorted(filter(math.isfinite, found)))


def _nullable(value: Any) -> Any:
    """Columns of numbers say null as NaN."""
    return None if is_null(value) else value


def _reached(
    values: list[Any], runs: Sequence[Run], tried: Sequence[float]
) -> dict[Any, tuple[int, float]]:
    """Value -> (its seeds that lack nothing, their mean) where a run has ended; more is better.

    What is no number is there as text; (0, -inf): no run that has ended has a number.
    """
    of_values: dict[Any, list[Run]] = {}
    for value, run in zip(values, runs, strict=True):
        of_values.setdefault(value if value in tried else repr(value), []).append(run)
    found = {}
    for value, of_value in of_values.items():
        ended = [run for run in of_value if not math.isnan(run.value)]
        (standing,) = rank([ended], 1)
        num_pending = len({run.seed for run in of_value} - {run.seed for run in ended})
        if standing.num_seeds:
            found[value] = standing.num_seeds + num_pending, standing.mean
        elif ended:
            found[value] = 0, -math.inf
    return found


def _side(results: Mapping[Any, tuple[int, float]], tried: Sequence[float]) -> str | None:
    """'largest', 'smallest' or, where the best is neither alone, ''; None where none is best."""
    if sum(value in results for value in tried) < LEAST or max(results.values())[0] == 0:
        return None
    best = tuple(value for value, result in results.items() if result == max(results.values()))
    return {tried[:1]: "smallest", tried[-1:]: "largest"}.get(best, "")


def _added(df: pd.DataFrame, run: int, key: str, row: tuple[float, ...]) -> tuple[float, ...]:
    """The values that continue the row and that the configuration of this run takes."""
    (asked,) = _asked(df, [run])
    added: list[float] = []
    for value in beyond(key, row):
        try:
            taken = getattr(make_config(asked | {key: value}), key)
        except UserError:
            continue
        end = (added or row)[-1]  # whole numbers may be rounded to it
        added += [taken] * (taken > end if row[-1] > row[0] else taken < end)
    return tuple(added)


# ---- The job file ------------------------------------------------------------------------


def extension(df: pd.DataFrame, found: Sequence[Edge], name: str | None = None) -> str:
    """The text of a job file: the runs at the edges again, with the values beyond.

    name: of the batch; '…-edges' where none is given. Raises UserError where there is no edge.
    """
    runs = [(edge, run) for edge in found for run in _runs_at(df, edge)]
    if not runs:
        raise bad_value("found", list(found), "at least one edge of these runs")
    batch = str(df["batch"].iloc[0]) if "batch" in df else "grid"
    name = name or re.sub(r"^\d\d-\d\d-\d\d-|-edges$", "", batch) + "-edges"
    blocks = _merged(_blocks(runs))
    details = {"name": name, "output_dir": _results_of(df)}
    content = {"job_details": details, "parameters": _parameters(blocks, found)}
    num_runs = sum(math.prod(map(len, block.values())) for block in blocks)
    lines = [f"Is it better still beyond the edges of {batch}? Runs: {num_runs:,}"]
    lines += dict.fromkeys(f"  {e.key} {BEYOND[e.side]} {shown(e.value)}" for e in found)
    lines += [f"  python submit_multiple.py jobs/{name}.yaml -s local"]
    return "".join(f"# {line}\n" for line in lines) + write_yaml(content)


def _results_of(df: pd.DataFrame) -> str:
    """Where the batch of the first run lies; 'results' where nobody knows."""
    folder = Path(str(df["output_dir"].iloc[0] if "output_dir" in df else None))
    results = folder.parents[1] if len(folder.parents) > 1 else Path("results")
    for here in (Path.cwd(), ROOT):  # a notebook is in a folder of its own
        if results.is_relative_to(here):
            return str(results.relative_to(here))
    return str(results) if results.is_dir() else results.name


def _asked(df: pd.DataFrame, runs: Sequence[int]) -> list[dict[str, Any]]:
    """What these runs, by position, were asked for: keys that are not null."""
    rows = df.iloc[runs][[key for key in ASKED if key in df]].to_dict("records")
    return [
        {str(k): v for k, v in row.items() if _nullable(v) is not None and v != NOT_KNOWN}
        for row in rows
    ]


def _runs_at(df: pd.DataFrame, edge: Edge) -> list[dict[str, Any]]:
    """All keys of the runs that have the edge's value in its settings, one a seed."""
    others = list(edge.at_edge[0])
    is_there = df[edge.key].eq(edge.value).fillna(False)  # where a run has no number
    positions = np.flatnonzero(is_there.to_numpy(dtype=bool))
    wanted = {row_identity(setting) for setting in edge.at_edge}
    runs: dict[frozenset, dict[str, Any]] = {}
    for values, rows in groups(df[others].iloc[positions].assign(position=positions), others):
        if row_identity({key: _nullable(value) for key, value in values.items()}) in wanted:
            for asked in _asked(df, rows["position"].tolist()):
                config = make_config(asked)
                run = {key: getattr(config, key) for key in ASKED}
                runs.setdefault(
                    row_identity({k: run[k] for k in run.keys() - NON_SEMANTIC_KEYS}), run
                )
    return list(runs.values())


def _blocks(runs: Sequence[tuple[Edge, dict[str, Any]]]) -> list[Block]:
    """A block a setting at an edge, with its seeds; keys that all leave at the default are out."""
    defaults = vars(make_config({}))
    keys = {k for edge, run in runs for k in run if run[k] != defaults[k] or k == edge.key}
    settings: dict[frozenset, tuple[Block, list[dict[str, Any]]]] = {}
    for edge, run in runs:
        block = {key: [run[key]] for key in run if key in keys and key not in SEEDS}
        block[edge.key] = list(edge.added)
        _, seeds = settings.setdefault(row_identity(block), (block, []))
        seeds.append({key: run[key] for key in SEEDS if key in keys})
    return [block | _seeds(seeds) for block, seeds in settings.values()]


def _seeds(seeds: Sequence[dict[str, Any]]) -> Block:
    """Lists to be crossed, where the seeds are all their combinations."""
    lists = {key: list(dict.fromkeys(of_run[key] for of_run in seeds)) for key in seeds[0]}
    return lists if math.prod(map(len, lists.values())) == len(seeds) else {ZIP: list(seeds)}


def _merged(blocks: Sequence[Block]) -> list[Block]:
    """Blocks that differ in one key only become one: what is a product is written as one."""
    for key in dict.fromkeys(chain.from_iterable(blocks)):
        alike: dict[frozenset, Block] = {}
        for block in blocks:
            one = alike.setdefault(row_identity(block | {key: None}), dict(block))
            more = [value for value in block.get(key, []) if value not in one[key]]
            one |= {key: one[key] + more} if more else {}
        blocks = list(alike.values())
    return list(blocks)


def _parameters(blocks: Sequence[Block], found: Sequence[Edge]) -> dict[str, Any]:
    """What all blocks share stands once, the rest in LIST_edges; seeds and bookkeeping last."""
    first, own = blocks[0], {edge.key for edge in found}
    own |= {
        key
        for block in blocks
        for key in {**block, **first}
        if row_identity({key: block.get(key)}) != row_identity({key: first.get(key)})
    }
    shared = {key: _entry(key, first[key]) for key in first if key not in own}
    rest = [{key: _entry(key, block[key]) for key in block if key in own} for block in blocks]
    keys = sorted([*shared, "LIST_edges"], key=lambda k: (k in BOOKKEEPING, k in (*SEEDS, ZIP)))
    return {key: shared.get(key, rest) for key in keys}


def _entry(key: str, values: Sequence[Any]) -> Any:
    """As the grid reads it back; a copy, as YAML marks what it meets twice."""
    if key == ZIP:
        return {seed: [of_run[seed] for of_run in values] for seed in values[0]}
    is_listed = len(values) > 1 or isinstance(values[0], list)
    is_listed |= isinstance(values[0], str) and is_expression(values[0])
    is_listed |= isinstance(values[0], dict) and "n" in values[0]  # which would be a draw
    return deepcopy(list(values) if is_listed else values[0])
