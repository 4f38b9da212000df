"""One HTML file that tells all about batches: opens from disk, without a server or a network."""

import base64
import io
import json
import math
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from src.analysis.choice import ChoiceWarning, choose
from src.analysis.curves import direction_of, main_metrics, numbers
from src.analysis.edges import edge_alarm
from src.analysis.plots import against, heat_map, learning_curves, tradeoff
from src.analysis.scores import scores_by, settings_of
from src.analysis.settings import is_null, is_number, sort_key, varying
from src.metrics import DIRECTIONS, metric_name
from src.ranking import SEEDS
from src.support import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("page.html.j2")
MOST_METRICS = 4  # columns of curves in the table, two numbers each
MOST_AGAINST = 4  # pictures of a metric against a key
MOST_CURVES = 12  # settings in one picture of learning curves
DPI = 160  # of phones, and of paper
LONG = 40  # characters, above which a cell of a table breaks into lines
WORDS = {"unstarted": "never started"}


@dataclass(frozen=True)
class Column:
    """Of the table: numbers, or few values in the order in which they sort. null sorts last."""

    title: str
    part: str  # of a curve: 'end' or 'best'
    cells: list[Any]  # (rows,) numbers, or positions in options
    options: list[str] | None = None


@dataclass(frozen=True)
class Drawn:
    """A picture, or why there is none."""

    caption: str
    source: str  # a data URI; '' where it cannot be drawn
    problem: str = ""


@dataclass(frozen=True)
class Section:
    """What the page shows of one batch."""

    facts: Mapping[str, Any]  # as report.py tells them
    skipped: list[tuple[str, str]]
    columns: list[Column]
    order: list[Any]  # [column, 'asc' or 'desc'] that rows are sorted by at first
    metric: str  # to choose by; '' where nothing was measured yet
    report: str  # to report
    choice: pd.DataFrame | None  # the best of each value of the key `per`, the best one first
    per: str
    alarm: str
    pictures: list[Drawn]
    warnings: list[str]


def render_page(batches: Sequence[tuple[Mapping[str, Any], pd.DataFrame]]) -> str:
    """The HTML of batches: (the facts of report.py, the big_df) of each."""
    from itables.options import dt_bundle
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": _cell,
        "width": lambda value: "long" if len(_cell(value)) > LONG else "",
        "short": _short,
        "basename": _basename,
    }
    sections = [section(facts, df) for facts, df in batches]
    return environment.get_template(TEMPLATE.name).render(
        title=_basename(batches[0][0]["batch"]) if len(batches) == 1 else f"{len(batches)} batches",
        sections=sections,
        tables=[_for_script(one) for one in sections],
        words=WORDS,
        long=LONG,
        datatables=base64.b64encode(Path(dt_bundle).read_bytes()).decode(),
        nonce=secrets.token_urlsafe(16),  # only scripts that bear it are run
    )


def _basename(folder: str) -> str:
    return Path(folder).absolute().name


def section(facts: Mapping[str, Any], df: pd.DataFrame) -> Section:
    """All that is worth saying of one batch; what cannot be said yet is left out."""
    if len(df):  # whether a run that says it is running still does, the facts know
        states = {row["name"]: row["state"] for row in facts["rows"]}
        df = df.assign(state=[states.get(str(run), state) for run, state in df["state"].items()])
    by, report = _metrics(facts, df)
    columns = _columns(df, by) if len(df) else []
    per = _named_keys(df)[:1] if by else []
    choice, alarm, said = _judged(df, by, report, per) if by else (None, "", [])
    return Section(
        facts,
        skipped=_unreadable(facts, df),
        columns=columns,
        order=_first_order(columns, by),
        metric=by,
        report=report,
        choice=choice,
        per="".join(per),
        alarm=alarm,
        pictures=list(_pictures(facts, df)) if by else [],
        warnings=said,
    )


def _unreadable(facts: Mapping[str, Any], df: pd.DataFrame) -> list[tuple[str, str]]:
    """(row, what of it cannot be read): by the dataframe, and by report.py of what is in it."""
    skipped = [(_basename(path), reason) for path, reason in df.attrs.get("skipped", [])]
    known = dict(skipped)
    damaged = [(row["name"], row["damage"]) for row in facts["rows"] if row.get("damage")]
    return skipped + [(name, reason) for name, reason in damaged if name not in known]


def _judged(
    df: pd.DataFrame, by: str, report: str, per: Sequence[str]
) -> tuple[pd.DataFrame | None, str, list[str]]:
    """(the best settings, the edge alarm, what they warn of); a refusal is a warning too."""
    choice, alarm, said = None, "", []
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", ChoiceWarning)
        try:
            choice = choose(df, by, report, per=per)
            choice = choice[choice["num_seeds"] > 0].sort_values(
                ["num_seeds", by], ascending=[False, direction_of(by) < 0], kind="stable"
            )
            alarm = edge_alarm(df, by)
        except UserError as error:
            said.append(str(error))
    return choice, alarm, list(dict.fromkeys([*(str(one.message) for one in heard), *said]))


def _metrics(facts: Mapping[str, Any], df: pd.DataFrame) -> tuple[str, str]:
    """(the column to choose by, the column to report); empty where nothing was measured yet."""
    if facts["metric"] in df:
        return facts["metric"], facts["metric"]
    try:
        return main_metrics(df)
    except UserError:
        return "", ""


def _named_keys(df: pd.DataFrame) -> list[str]:
    return [key for key in varying(df) if any(isinstance(value, str) for value in df[key])]


def _numeric_keys(df: pd.DataFrame) -> list[str]:
    """Whose values are numbers, null apart; true and false are none."""

    def is_numeric(values: pd.Series) -> bool:
        return all(is_number(value) for value in values if not is_null(value))

    return [key for key in varying(df) if is_numeric(df[key].astype(object))]


# ---- The table ---------------------------------------------------------------------------


def _columns(df: pd.DataFrame, by: str) -> list[Column]:
    keys = varying(df) + [key for key in SEEDS if key in df and df[key].nunique() > 1]
    ends, bests = _metric_columns(df, by)
    return [
        _coded("run", [_short(name) for name in df.index]),
        *ends[:1],  # what a phone shows
        *[_coded(key, df[key]) for key in keys],
        _coded("state", [WORDS.get(state, state) for state in df["state"]]),
        *ends[1:],
        *bests,
        *([_numeric("epochs", numbers(df, "epoch"))] if "epoch" in df else []),
        _numeric("seconds", df["seconds"].where(df["seconds"] > 0)),
        _coded("outcome", df["outcome"]),
        _coded("node", df["node"]),
    ]


def _short(name: str) -> str:
    """'007' of '007_BATCH+base_lr=0.1'."""
    number, _, rest = str(name).partition("_")
    return number if rest and number.isdigit() else str(name)


def _metric_columns(df: pd.DataFrame, by: str) -> tuple[list[Column], list[Column]]:
    """Of each metric, the one that is chosen by first: (the last values, the best ones)."""
    metrics = _shown_metrics(df, by)
    ends = [_numeric(metric, numbers(df, metric), part="end") for metric in metrics]
    bests = [_numeric(metric, numbers(df, metric, "best"), part="best") for metric in metrics]
    return ends, bests


def _shown_metrics(df: pd.DataFrame, by: str) -> list[str]:
    """Of evaluations, SPLIT/MODEL/MEASURE: those by which runs are compared first."""
    order = list(DIRECTIONS)
    curves = [str(c) for c in df.columns if df[c].dtype == "curve" and str(c).count("/") == 2]
    metrics = [c for c in curves if metric_name(c) in order and c != by]
    metrics.sort(key=lambda c: (c.startswith("train/"), order.index(metric_name(c))))
    return ([by] if by else []) + metrics[: MOST_METRICS - bool(by)]


def _numeric(title: str, values: pd.Series, *, part: str = "") -> Column:
    cells = [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
    return Column(title, part, cells)


def _coded(title: str, values: Any) -> Column:
    """Each value as its position among the different ones, which stand in their order."""
    items = list(values)
    texts = [None if is_null(value) else _cell(value) for value in items]
    values_of = {text: value for text, value in zip(texts, items, strict=True) if text is not None}
    options = sorted(values_of, key=lambda text: (*sort_key(values_of[text])[:2], text))
    position = {text: place for place, text in enumerate(options)}
    return Column(title, "", [position[t] if t is not None else None for t in texts], options)


def _cell(value: Any) -> str:
    """A value in a table, not cut off; null is empty."""
    if is_null(value):
        return ""
    if is_number(value):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _first_order(columns: Sequence[Column], by: str) -> list[Any]:
    """The best first; where nothing was measured, the first run first."""
    titles = [column.title for column in columns]
    if not by:
        return [0, "asc"]
    return [titles.index(by), "desc" if direction_of(by) > 0 else "asc"]


def _for_script(one: Section) -> dict[str, Any]:
    """What the script in the page makes a table of."""
    rows = list(zip(*(column.cells for column in one.columns), strict=True))
    return {"options": [c.options for c in one.columns], "order": one.order, "rows": rows}


# ---- The pictures ------------------------------------------------------------------------


def _pictures(facts: Mapping[str, Any], df: pd.DataFrame) -> Iterator[Drawn]:
    wanted = _wanted_pictures(facts, df)
    is_seen = sys.stderr.isatty()
    for caption, draw in tqdm(wanted, unit="picture", leave=False, delay=1, disable=not is_seen):
        yield _drawn(caption, draw)


def _drawn(caption: str, draw: Callable[[], "Figure"]) -> Drawn:
    """What cannot be drawn says why in its place; other exceptions are bugs, which rise."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ChoiceWarning)  # the picture says it as well
            return Drawn(caption, _data_uri(draw()))
    except UserError as error:
        return Drawn(caption, "", str(error))


def _wanted_pictures(
    facts: Mapping[str, Any], df: pd.DataFrame
) -> list[tuple[str, Callable[[], "Figure"]]]:
    """(caption, what draws it)"""
    by, report = _metrics(facts, df)
    # None: chosen by one split and shown on another, where there is one
    metric = by if by == facts["metric"] else None
    keys, best = _numeric_keys(df), best_settings(df, by)
    which = "" if len(best) == len(df) else f" of the {MOST_CURVES} best settings"
    wanted: list[tuple[str, Callable[[], Figure]]]
    wanted = [(f"Learning curves{which}: {report}", partial(learning_curves, best, metric))]
    for key in keys[:MOST_AGAINST]:
        wanted.append((f"{report} against {key}", partial(against, df, key, metric)))
    if len(keys) > 1:
        x, y = keys[:2]
        wanted.append((f"{report} by {x} and {y}", partial(heat_map, df, x, y, metric)))
    return [*wanted, (f"{report} against time", partial(tradeoff, df, "seconds", report))]


def best_settings(df: pd.DataFrame, by: str) -> pd.DataFrame:
    """The runs of those few settings that choose() ranks first: no eye tells more curves apart."""
    sign, judged, settings = direction_of(by), scores_by(df, by), settings_of(df, [])
    if len(settings) <= MOST_CURVES or np.isnan(judged.values).all():
        return df
    settings.sort(key=lambda setting: judged.rank(setting, sign))
    return df.iloc[np.concatenate([setting.rows for setting in settings[:MOST_CURVES]])]


def _data_uri(figure: "Figure") -> str:
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
