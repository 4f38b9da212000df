"""summary: a batch on one page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from src.analysis.curves import direction_of
from src.analysis.plots.cells import heat_map
from src.analysis.plots.keys import against
from src.analysis.plots.learning import learning_curves
from src.analysis.plots.marks import Levels, levels
from src.analysis.plots.names import literal
from src.analysis.plots.panels import GREY
from src.analysis.plots.tradeoffs import tradeoff
from src.analysis.scores import (
    INTERVAL,
    Scores,
    Setting,
    mean_interval,
    metrics_of,
    scores_by,
    settings_of,
)
from src.analysis.settings import format_some, format_value, varying

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = (8.27, 11.69)  # inches of A4
MOST_LINES = 6  # learning curves
MOST_KEYS = 4  # that get a panel
BEST = 5  # settings in the table
SIGNS = (
    f"bars and shades: {INTERVAL} over seeds; dotted: some seeds only; x: diverged;\n"
    "framed: the best pair; circled: nothing is faster and better"
)


def summary(df: pd.DataFrame, metric: str | None = None) -> "Figure":
    """A batch on one page: learning curves of the best settings, each key that is a number,
    what it costs, and the best settings in a table.

    Raises UserError where there is no such metric; runs that have none yet are counted.
    """
    from src.analysis.plots.picture import new_picture

    figure = new_picture(*PAGE)
    if metric is None and not any(df[name].dtype == "curve" for name in df.columns):
        _title(figure, df, "no run has been evaluated yet")
        return figure
    batch = Batch.of(df, metric)
    _title(figure, df, batch.metric)
    _draw(figure, batch)
    return figure


@dataclass(frozen=True)
class Batch:
    """What all parts of the page are about."""

    df: pd.DataFrame
    asked: str | None  # the metric, where one was asked for
    judge: str  # the column to choose by
    metric: str  # the one that is shown
    settings: list[Setting]  # as choose() ranks them; without those that have no number
    shown: Scores
    keys: list[Levels]  # that vary, the most telling first

    @classmethod
    def of(cls, df: pd.DataFrame, asked: str | None) -> "Batch":
        judge, metric = metrics_of(df, asked)
        shown_numbers, judged = scores_by(df, metric), scores_by(df, judge)
        sign = direction_of(judge)
        settings = settings_of(df, [])
        ranks = {setting.row: judged.rank(setting, sign) for setting in settings}
        there = [setting for setting in settings if np.isfinite(ranks[setting.row][1])]
        there.sort(key=lambda setting: ranks[setting.row])
        keys = [levels(df, key) for key in varying(df)]
        keys.sort(key=lambda key: -_telling(key, there, judged, sign))
        return cls(df, asked, judge, metric, there, shown_numbers, keys)

    @property
    def numeric(self) -> list[str]:
        return [key.key for key in self.keys if key.is_numeric]


def _telling(key: Levels, settings: Sequence[Setting], judged: Scores, sign: int) -> float:
    """How far apart the best settings of its values are."""
    best = [
        judged.mean(judged.best(inside, sign))
        for code in range(len(key.values))
        if (inside := [s for s in settings if key.codes[s.row] == code])
    ]
    there = np.array(best)[np.isfinite(best)]
    return float(np.ptp(there)) if len(there) else 0.0


def _title(figure: Any, df: pd.DataFrame, metric: str) -> None:
    batches = list(dict.fromkeys(df["batch"])) if "batch" in df else []
    names = format_some(list(map(format_value, batches)), separator=", ")
    counts = df["state"].value_counts() if "state" in df else {}
    states = ", ".join(f"{num} {state}" for state, num in counts.items())
    runs = f"{len(df)} run{'s' * (len(df) != 1)}" + (f": {states}" if states else "")
    figure.suptitle(literal(f"{names or 'runs'}\n{runs}; {metric}"), fontsize=12)


# ---- The page ----------------------------------------------------------------------------


def _draw(figure: Any, batch: Batch) -> None:
    """Rows of panels, each of which has its own room for legends."""
    halves = _halves(batch)
    num_rows = -(-len(halves) // 2)
    rows = figure.subfigures(num_rows + 2, 1, height_ratios=[1.1, *[1] * num_rows, 0.55])
    _draw_curves(rows[0].subplots(), batch)
    for number, row in enumerate(rows[1:-1]):
        inside = halves[2 * number : 2 * number + 2]
        parts = row.subfigures(1, len(inside), squeeze=False)[0]
        for part, (title, draw) in zip(parts, inside, strict=True):
            axis = part.subplots()
            draw(axis)
            axis.set_title(title, fontsize=10)
    _draw_table(rows[-1].subplots(), batch)
    figure.supxlabel(SIGNS, fontsize=8, color=GREY)


def _halves(batch: Batch) -> list[tuple[str, Callable[["Axes"], Any]]]:
    """(title, what draws): each key that is a number, two of them, costs."""
    df, numeric = batch.df, batch.numeric
    keys = numeric[:MOST_KEYS] or [key.key for key in batch.keys[:1]]
    found: list[tuple[str, Callable[[Axes], Any]]] = [
        ("the best of each value", partial(_draw_against, batch, key)) for key in keys
    ]
    if len(numeric) > 1:
        x, y = numeric[:2]
        found.append(("the best of each pair", lambda ax: heat_map(df, x, y, batch.asked, ax=ax)))
    if "seconds" in df and len(batch.settings) > 1:
        found.append(("all settings", lambda ax: tradeoff(df, "seconds", batch.metric, ax=ax)))
    return found


def _draw_against(batch: Batch, key: str, axis: "Axes") -> None:
    against(batch.df, key, batch.asked, ax=axis)


def _draw_curves(axis: "Axes", batch: Batch) -> None:
    """Of each value of the most telling key, the best setting."""
    best = batch.settings[:1]
    if batch.keys:
        codes = batch.keys[0].codes
        first = {int(codes[setting.row]): setting for setting in reversed(batch.settings)}
        best = [s for s in batch.settings if first[int(codes[s.row])] is s][:MOST_LINES]
    rows = np.sort(np.concatenate([setting.rows for setting in best] or [np.zeros(0, dtype=int)]))
    colour = batch.keys[0].key if batch.keys and len(best) > 1 else None
    learning_curves(batch.df.iloc[rows], batch.metric, colour=colour, ax=axis)
    if colour:
        axis.set_title(literal(f"the best setting of each {colour}"), fontsize=10)


def _draw_table(axis: "Axes", batch: Batch) -> None:
    axis.axis("off")
    best = batch.settings[:BEST]
    if not best or not batch.keys:
        _say(axis, batch)
        return
    keys = sorted(batch.keys, key=lambda found: list(best[0].values).index(found.key))
    names = {found.key: found.names for found in keys}
    lines = [
        [literal(names[found.key][found.codes[s.row]]) for found in keys] + [_number(batch, s)]
        for s in best
    ]
    titles = [literal(title) for title in (*names, batch.metric)]
    table = axis.table(lines, colLabels=titles, loc="center", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.auto_set_column_width(range(len(keys) + 1))
    for (line, _), cell in table.get_celld().items():
        cell.set(linewidth=0, height=0.16)
        cell.set_text_props(color=GREY if line == 0 else "black")
    by = "" if batch.judge == batch.metric else f" by {batch.judge}"
    axis.set_title(literal(f"the best {len(best)}{by}: mean and 95 % interval"), fontsize=10)


def _say(axis: "Axes", batch: Batch) -> None:
    text = "no run has a value yet"
    if batch.settings:
        text = f"{batch.metric}: {_number(batch, batch.settings[0])}"
    look: Any = {"ha": "center", "va": "center", "transform": axis.transAxes, "color": GREY}
    axis.text(0.5, 0.5, literal(text), **look)


def _number(batch: Batch, setting: Setting) -> str:
    """'0.9512 (0.9480 to 0.9531)', '0.9512 (of 2 seeds, 1 diverged)'."""
    seeds = batch.shown.of(setting)
    there = seeds[np.isfinite(seeds)]
    mean, low, high = (float(part) for part in mean_interval(there))
    if num := len(seeds) - len(there):
        mean_of = f"{mean:.4g} " if len(there) else ""
        return f"{mean_of}(of {len(seeds)} seeds, {num} diverged)"
    return f"{mean:.4g}" + (f" ({low:.4g} to {high:.4g})" if np.isfinite(low) else "")
