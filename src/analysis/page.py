"""One HTML file about batches: it opens from disk, without a server or a network."""

import base64
import io
import json
import math
import secrets
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from src.analysis.choice import ChoiceWarning, choose
from src.analysis.curves import direction_of, main_metrics, numbers
from src.analysis.edges import edge_alarm
from src.analysis.plots import against, heat_map, learning_curves, tradeoff
from src.analysis.settings import is_null, is_number, scores_by, settings_of, sort_key, varying
from src.metrics import DIRECTIONS, is_result, metric_name
from src.ranking import SEEDS
from src.support import UserError

TEMPLATE = Path(__file__).with_name("page.html.j2")
MOST_METRICS = 4  # columns of curves in the table, two numbers each
MOST_AGAINST = 4  # pictures of a metric against a key
MOST_CURVES = 12  # settings in one picture of learning curves
MOST_DRAWN = 300  # runs whose curves the reader can choose from, the best first
LINES_OF_LOG = 12  # at its end, of each of them
DPI = 160  # of phones, and of paper
LONG = 40  # characters, above which a cell of a table breaks into lines
STATE_NAMES = {"unstarted": "never started"}


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
        "mean_and_std": _mean_and_std,
    }
    return environment.get_template(TEMPLATE.name).render(
        title=_basename(batches[0][0]["batch"]) if len(batches) == 1 else f"{len(batches)} batches",
        sections=[_section(facts, df) for facts, df in batches],
        words=STATE_NAMES,
        long=LONG,
        datatables=base64.b64encode(Path(dt_bundle).read_bytes()).decode(),
        nonce=secrets.token_urlsafe(16),  # only scripts that bear it are run
    )


def _mean_and_std(best: Mapping[str, Any]) -> str:
    """'0.9861 ± 0.010', in as many digits as tell settings apart."""
    if best["value"] is None:
        return str(best["value_in_words"])
    std = "" if best["std"] is None else f" ± {best['std']:.2g}"
    return f"{best['value']:#.4g}{std}"


def _basename(folder: str) -> str:
    return Path(folder).absolute().name


def _section(facts: Mapping[str, Any], df: pd.DataFrame) -> dict[str, Any]:
    """What the template shows of one batch; what is not known yet is empty."""
    if len(df):  # whether a run that is marked as running still does, the facts know
        states = {row["name"]: row["state"] for row in facts["rows"]}
        df = df.assign(state=[states.get(str(run), state) for run, state in df["state"].items()])
    by, report = "", ""  # the columns to choose by and to report, where something was measured
    if facts["metric"] in df:
        by = report = facts["metric"]
    else:
        with suppress(UserError):
            by, report = main_metrics(df)
    columns = _columns(df, by) if len(df) else []
    is_rising = bool(by) and direction_of(by) > 0
    # The best setting of each value of the first key that has names, and the edge alarm.
    named_keys = [key for key in varying(df) if any(isinstance(v, str) for v in df[key])]
    per = named_keys[:1] if by else []
    choice, alarm, refused = None, "", []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ChoiceWarning)
        try:
            if by:
                choice = choose(df, by, report, per=per)
                choice = choice[choice["num_seeds"] > 0].sort_values(
                    ["num_seeds", by], ascending=[False, not is_rising], kind="stable"
                )
                alarm = edge_alarm(df, by)
        except UserError as error:
            refused.append(str(error))
    skipped = {_basename(path): reason for path, reason in df.attrs.get("skipped", [])}
    for row in facts["rows"]:
        if row.get("damage"):
            skipped.setdefault(row["name"], row["damage"])
    place = [column.title for column in columns].index(by) if by else 0
    return {
        "facts": facts,
        "skipped": skipped,  # row -> what of it cannot be read
        "columns": columns,
        "table": {
            "options": [column.options for column in columns],
            "order": [place, "desc" if is_rising else "asc"],  # the best first
            "rows": list(zip(*(column.cells for column in columns), strict=True)),
            "runs": _runs(df, by, Path(facts["batch"]))
            if by
            else {"metrics": [], "keys": [], "lines": []},
        },
        "metric": by,
        "report": report,
        "choice": None if choice is None else _chosen(choice, by, report),
        "per": "".join(per),
        "alarm": alarm,
        "pictures": _pictures(facts, df, by, report) if by else [],
        "warnings": list(dict.fromkeys([*(str(one.message) for one in caught), *refused])),
    }


def _chosen(choice: pd.DataFrame, by: str, report: str) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of choose()'s dataframe, for a person."""
    keys = list(choice.columns[: choice.columns.get_loc("num_seeds")])
    interval = f"{report}, mean [95 % interval]"
    titles = [*keys, "seeds", *[f"{by}, mean"] * (by != report), interval]
    rows = []
    for row in choice.to_dict("records"):
        seeds = f"{row['num_seeds']} of {row['num_expected']}"
        seeds += f", {row['num_diverged']} diverged" * bool(row["num_diverged"])
        ends = [row["low"], row["high"]]
        words = f"{row[report]:.4g}"
        if all(map(math.isfinite, ends)):
            words += f" [{ends[0]:.4g}, {ends[1]:.4g}]"
        elif row["num_seeds"] > 1:
            words += " (all seeds alike)"
        mean = [f"{row[by]:.4g}"] * (by != report)
        rows.append([*(_cell(row[key]) for key in keys), seeds, *mean, words])
    return titles, rows


def _runs(df: pd.DataFrame, by: str, batch: Path) -> dict[str, Any]:
    """What the page draws when somebody asks for it: of the best runs the curves, the values of
    what varies, and the end of the log."""
    is_drawn = direction_of(by) * numbers(df, by).fillna(-math.inf * direction_of(by))
    places = np.argsort(-is_drawn.to_numpy(), kind="stable")[:MOST_DRAWN]
    metrics = _shown_metrics(df, by)
    metrics += [c for c in ("train/loss", "train/accuracy") if c in df and df[c].dtype == "curve"]
    keys, lines = varying(df), []
    for place in map(int, places):
        curves = []
        for metric in metrics:
            curve = df[metric].iloc[place]
            cells = [] if curve is None else list(curve)
            curves.append([float(f"{y:.4g}") if math.isfinite(y) else None for y in cells])
        values = [None if is_null(x := df[key].iloc[place]) else _plain(x) for key in keys]
        lines.append([place, values, curves, _end_of_log(batch / str(df.index[place]))])
    return {"metrics": metrics, "keys": keys, "lines": lines}


def _plain(value: Any) -> float | str:
    return float(value) if is_number(value) and math.isfinite(value) else _cell(value)


def _end_of_log(folder: Path) -> str:
    with suppress(OSError):
        text = (folder / "training.log").read_text(errors="replace")
        return "\n".join(line[:200] for line in text.splitlines()[-LINES_OF_LOG:])
    return ""


@dataclass(frozen=True)
class Column:
    """Numbers, or positions in the sorted options; null sorts last."""

    title: str
    cells: list[Any]  # (rows,)
    options: list[str] | None = None
    part: str = ""  # of a curve: 'end' or 'best'


def _columns(df: pd.DataFrame, by: str) -> list[Column]:
    keys = varying(df) + [key for key in SEEDS if key in df and df[key].nunique() > 1]
    metrics = _shown_metrics(df, by)
    ends = [_numeric(metric, numbers(df, metric), "end") for metric in metrics]
    judged = [metric for metric in metrics if metric_name(metric) in DIRECTIONS]
    return [
        _coded("run", map(_short, df.index)),
        *ends[:1],  # what a phone shows
        *[_coded(key, df[key]) for key in keys],
        _coded("state", [STATE_NAMES.get(state, state) for state in df["state"]]),
        *ends[1:],
        *[_numeric(metric, numbers(df, metric, "best"), "best") for metric in judged],
        *([_numeric("epochs", numbers(df, "epoch"))] if "epoch" in df else []),
        _numeric("seconds", df["seconds"].where(df["seconds"] > 0)),
        _coded("outcome", df["outcome"]),
        _coded("node", df["node"]),
    ]


def _short(name: Any) -> str:
    """'007' of '007_BATCH+base_lr=0.1'."""
    number, _, rest = str(name).partition("_")
    return number if rest and number.isdigit() else str(name)


def _shown_metrics(df: pd.DataFrame, by: str) -> list[str]:
    """Of evaluations, split/model/metric: those by which runs are compared first."""
    order = list(DIRECTIONS)
    curves = [str(c) for c in df.columns if df[c].dtype == "curve" and str(c).count("/") == 2]
    metrics = [c for c in curves if is_result(c) and c != by]
    metrics.sort(key=lambda c: [*order, metric_name(c)].index(metric_name(c)))
    return ([by] if by else []) + metrics[: MOST_METRICS - bool(by)]


def _numeric(title: str, values: pd.Series, part: str = "") -> Column:
    cells = [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
    return Column(title, cells, part=part)


def _coded(title: str, values: Any) -> Column:
    """Each value as its position among the different ones, which stand in their order."""
    items = list(values)
    texts = [None if is_null(value) else _cell(value) for value in items]
    values_of = {text: value for text, value in zip(texts, items, strict=True) if text is not None}
    options = sorted(values_of, key=lambda text: (*sort_key(values_of[text])[:2], text))
    position = {text: place for place, text in enumerate(options)}
    return Column(title, [None if text is None else position[text] for text in texts], options)


def _cell(value: Any) -> str:
    """A value in a table, not cut off; null is empty."""
    if is_null(value):
        return ""
    if is_number(value):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _pictures(
    facts: Mapping[str, Any], df: pd.DataFrame, by: str, report: str
) -> list[dict[str, str]]:
    """Captions with data URIs; in place of one that cannot be drawn, the reason."""
    # None: chosen by one split and shown on another, where there is one
    metric = by if by == facts["metric"] else None
    best = best_settings(df, by)
    which = "" if len(best) == len(df) else f" of the {MOST_CURVES} best settings"
    wanted: dict[str, Callable[[], Any]] = {
        f"Learning curves{which}: {report}": partial(learning_curves, best, metric)
    }
    values = {key: df[key].astype(object) for key in varying(df)}
    numeric = [k for k, found in values.items() if all(is_number(x) or is_null(x) for x in found)]
    for key in numeric[:MOST_AGAINST]:
        wanted[f"{report} against {key}"] = partial(against, df, key, metric)
    if len(numeric) > 1:
        x, y = numeric[:2]
        wanted[f"{report} by {x} and {y}"] = partial(heat_map, df, x, y, metric)
    wanted[f"{report} against time"] = partial(tradeoff, df, "seconds", report)

    pictures = []
    bar = {"unit": "picture", "leave": False, "delay": 1, "disable": not sys.stderr.isatty()}
    for caption, draw in tqdm(wanted.items(), **bar):
        png, problem = io.BytesIO(), ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ChoiceWarning)  # the caption of the figure has it
                draw().savefig(png, format="png", dpi=DPI, bbox_inches="tight")
        except UserError as error:
            problem = str(error)
        source = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
        pictures.append({"caption": caption, "source": source, "problem": problem})
    return pictures


def best_settings(df: pd.DataFrame, by: str) -> pd.DataFrame:
    """The runs of those few settings that choose() ranks first: no eye tells more curves apart."""
    sign, judged, settings = direction_of(by), scores_by(df, by), settings_of(df)
    if len(settings) <= MOST_CURVES or np.isnan(judged.values).all():
        return df
    settings.sort(key=lambda setting: judged.rank(setting, sign))
    return df.iloc[np.concatenate([setting.rows for setting in settings[:MOST_CURVES]])]
