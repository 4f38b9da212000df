"""A batch on one page: the picture to look at first."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.analysis.curves import direction_of
from src.analysis.plots.curves import learning_curves
from src.analysis.plots.encoding import Levels, levels, literal
from src.analysis.plots.panels import GREY, NotebookFigure, grouped
from src.analysis.plots.results import against, heat_map, tradeoff
from src.analysis.settings import (
    INTERVAL,
    Setting,
    format_some,
    format_value,
    mean_interval,
    metrics_of,
    scores_by,
    settings_of,
    varying,
)

PAGE = (8.27, 11.69)  # inches of A4
MOST_LINES = 6  # learning curves
MOST_KEYS = 4  # that get a panel
BEST = 5  # settings in the table
SIGNS = (
    f"bars and shades: {INTERVAL} over seeds; dotted: some seeds only; x: diverged;\n"
    "framed: the best pair; circled: nothing is faster and better"
)


def summary(df: pd.DataFrame, metric: str | None = None) -> Figure:
    """A batch on one page: learning curves of the best settings, each key that is a number,
    what it costs, and the best settings in a table.

    Raises UserError where there is no such metric; runs that have none yet are counted.
    """
    figure: Any = NotebookFigure(*PAGE)
    batches = list(dict.fromkeys(df["batch"])) if "batch" in df else []
    names = format_some(list(map(format_value, batches)), separator=", ")
    counts = df["state"].value_counts() if "state" in df else {}
    states = ", ".join(f"{num} {state}" for state, num in counts.items())
    runs = f"{len(df)} run{'s' * (len(df) != 1)}" + (f": {states}" if states else "")
    title = f"{names or 'runs'}\n{runs}; "
    if metric is None and not any(df[name].dtype == "curve" for name in df.columns):
        figure.suptitle(literal(f"{title}no run has been evaluated yet"), fontsize=12)
        return figure
    judge, reported = metrics_of(df, metric)
    figure.suptitle(literal(title + reported), fontsize=12)

    # Settings that have a score, as choose() ranks them; the keys that vary, that one first between
    # whose values the best settings differ most.
    judged, sign = scores_by(df, judge), direction_of(judge)
    ranks = {setting.row: judged.rank(setting, sign) for setting in settings_of(df)}
    settings = [s for s in settings_of(df) if np.isfinite(ranks[s.row][1])]
    settings.sort(key=lambda setting: ranks[setting.row])

    def spread(key: Levels) -> float:
        of_values = grouped(settings, lambda s: int(key.codes[s.row])).values()
        best = np.array([judged.mean(judged.best(inside, sign)) for inside in of_values])
        there = best[np.isfinite(best)]
        return float(np.ptp(there)) if len(there) else 0.0

    keys = sorted((levels(df, key) for key in varying(df)), key=spread, reverse=True)
    numeric = [found.key for found in keys if found.is_numeric]
    halves: list[tuple[str, Callable[..., Any]]] = [
        ("the best of each value", partial(against, df, key, metric))
        for key in numeric[:MOST_KEYS] or [found.key for found in keys[:1]]
    ]
    if len(numeric) > 1:
        x, y = numeric[:2]
        halves.append(("the best of each pair", partial(heat_map, df, x, y, metric)))
    if "seconds" in df and len(settings) > 1:
        halves.append(("all settings", partial(tradeoff, df, "seconds", reported)))

    # Rows of two panels, each of which has its own room for legends.
    num_rows = -(-len(halves) // 2)
    rows = figure.subfigures(num_rows + 2, 1, height_ratios=[1.1, *[1] * num_rows, 0.55])
    axis = rows[0].subplots()
    best, colour = settings[:1], None
    if keys:  # of each value of the first key, the best setting
        of_values = grouped(settings, lambda s: int(keys[0].codes[s.row])).values()
        best = [inside[0] for inside in of_values][:MOST_LINES]
        colour = keys[0].key if len(best) > 1 else None
    of_best = np.sort(np.concatenate([np.zeros(0, dtype=int), *(setting.rows for setting in best)]))
    learning_curves(df.iloc[of_best], reported, colour=colour, ax=axis)
    if colour:
        axis.set_title(literal(f"the best setting of each {colour}"), fontsize=10)
    for number, row in enumerate(rows[1:-1]):
        inside = halves[2 * number : 2 * number + 2]
        parts = row.subfigures(1, len(inside), squeeze=False)[0]
        for part, (name, draw) in zip(parts, inside, strict=True):
            axis = part.subplots()
            draw(ax=axis)
            axis.set_title(name, fontsize=10)
    best = settings[:BEST]
    scores = {reported: [_score(scores_by(df, reported).of(setting)) for setting in best]}
    by = "" if judge == reported else f" by {judge}"
    _draw_table(rows[-1].subplots(), best, keys=keys, scores=scores, by=by)
    figure.supxlabel(SIGNS, fontsize=8, color=GREY)
    return figure


def _draw_table(
    axis: Axes, best: list[Setting], *, keys: list[Levels], scores: dict[str, list[str]], by: str
) -> None:
    """A row for each of the best settings. scores: the metric -> its text for each of them."""
    axis.axis("off")
    if not best or not keys:
        texts = [f"{metric}: {of_best[0]}" for metric, of_best in scores.items() if best]
        look: Any = {"ha": "center", "va": "center", "transform": axis.transAxes, "color": GREY}
        axis.text(0.5, 0.5, literal("".join(texts) or "no run has a value yet"), **look)
        return
    in_order = sorted(keys, key=lambda found: list(best[0].values).index(found.key))
    columns = {found.key: [found.names[found.codes[s.row]] for s in best] for found in in_order}
    columns |= scores
    lines = [list(map(literal, line)) for line in zip(*columns.values(), strict=True)]
    titles = list(map(literal, columns))
    table = axis.table(lines, colLabels=titles, loc="center", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.auto_set_column_width(range(len(titles)))
    for (line, _), cell in table.get_celld().items():
        cell.set(linewidth=0, height=0.16)
        cell.set_text_props(color=GREY if line == 0 else "black")
    axis.set_title(literal(f"the best {len(best)}{by}: mean and 95 % interval"), fontsize=10)


def _score(seeds: np.ndarray) -> str:
    """'0.9512 (0.9480 to 0.9531)', '0.9512 (of 2 seeds, 1 diverged)'; NaN of a diverged seed."""
    there = seeds[np.isfinite(seeds)]
    mean, low, high = (float(part) for part in mean_interval(there))
    if num := len(seeds) - len(there):
        mean_of = f"{mean:.4g} " if len(there) else ""
        return f"{mean_of}(of {len(seeds)} seeds, {num} diverged)"
    return f"{mean:.4g}" + (f" ({low:.4g} to {high:.4g})" if np.isfinite(low) else "")
