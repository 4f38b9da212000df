"""How the values of keys look in pictures: as text, as colours and styles, and in legends."""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from src.analysis.run_plot import COLOURS
from src.analysis.settings import (
    LONGEST,
    format_value,
    groups,
    is_null,
    is_number,
)
from src.support import bad_value, unknown_name

MISSING = "#999999"  # null among numbers
LINES = ["-", (0, (5, 2)), (0, (3, 1.5, 1, 1.5)), (0, (1, 1))]
POINTS = ["o", "s", "^", "D", "v", "P", "*"]
MAP = "viridis"  # its order is seen by colour-blind readers and in grey
MAP_END = 0.93  # beyond, it is too bright for lines on white
MOST_ENTRIES = 12  # of a legend
MOST_STYLES = 4
LOG_FROM = 10  # an axis of positive numbers that span more is logarithmic


def literal(text: str) -> str:
    """The text for matplotlib, which reads what stands between two dollars as mathematics."""
    return text.replace("$", r"\$")


def width_of(text: str, size: float) -> float:
    """Inches of a line in letters of so many points."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), False)
    return float(width) / 72


def names_of(values: Sequence[Any], most: int = LONGEST) -> list[str]:
    """A name for each of these different values: different ones, of at most `most` characters.

    Strings that look like other values among them are quoted: '0.9' beside 0.9.
    """
    is_mixed = not all(isinstance(value, str) for value in values)
    texts = []
    for value in values:
        if isinstance(value, str):
            is_quoted = not value or (is_mixed and _is_json(value))
            texts.append(f"'{value}'" if is_quoted else value)
        else:
            is_nested = isinstance(value, list | dict)
            texts.append(json.dumps(value, default=str) if is_nested else format_value(value))
    counts = Counter(texts)
    pairs = zip(values, texts, strict=True)  # numbers that are alike when rounded are shown whole
    texts = [str(v) if is_number(v) and counts[text] > 1 else text for v, text in pairs]

    names = [cut(text, most) for text in texts]
    for name in [name for name, number in Counter(names).items() if number > 1]:
        alike = [i for i, other in enumerate(names) if other == name]
        taken = {other for other in names if other != name}
        whole = [texts[i] for i in alike]
        # Without the begin they share; without the end either; with both, but not the middle.
        rests = [text[_num_shared(whole) :] for text in whole]
        end = _num_shared([rest[::-1] for rest in rests])
        candidates = [
            [cut("…" + rest, most) for rest in rests],
            [_without_middle(f"…{rest[: len(rest) - end]}…", most) for rest in rests],
            [_without_middle(text, most) for text in whole],
            [f"{cut(texts[i], most - 4)}#{i + 1}" for i in alike],
        ]
        different = next(new for new in candidates if len(set(new) - taken) == len(alike))
        for i, new in zip(alike, different, strict=True):
            names[i] = new
    return names


def _is_json(text: str) -> bool:
    """'0.9', 'null', 'true', '[1]'"""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _num_shared(texts: list[str]) -> int:
    """First letters that are the same in all."""
    return len(commonprefix(texts))  # noqa: RUF071 - these are no paths


def _without_middle(text: str, most: int) -> str:
    head = most // 2
    return text if len(text) <= most else f"{text[:head]}…{text[head + 1 - most :]}"


@dataclass(frozen=True)
class Levels:
    """The values of a key in their order, and which of them each run has."""

    key: str
    values: list[Any]
    codes: np.ndarray  # (runs,) positions in values

    @property
    def names(self) -> list[str]:
        return names_of(self.values)

    @property
    def is_numeric(self) -> bool:
        return bool(self.values) and all(map(_is_finite, self.values))


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def spans(values: Any, factor: float) -> bool:
    """Whether all are positive, and the largest is more than factor times the smallest."""
    numbers = np.asarray(values, dtype=float)
    return bool(len(numbers) and numbers.min() > 0 and numbers.max() > factor * numbers.min())


def levels(df: pd.DataFrame, key: str, role: str = "key") -> Levels:
    """role: the argument that named the key. Raises UserError where it can be no such key."""
    if key not in df:
        raise unknown_name(role, key, map(str, df.columns))
    if df[key].dtype == "curve":
        raise bad_value(role, key, "a key of the configuration: this is a column of curves")
    codes = np.zeros(len(df), dtype=int)
    found = groups(df[[key]].reset_index(drop=True), [key])
    for code, (_, rows) in enumerate(found):
        codes[rows.index] = code
    return Levels(key, [values[key] for values, _ in found], codes)


@dataclass(frozen=True)
class Encoding:
    """The colour or style of each value of a key; without a key all runs have the same."""

    levels: Levels | None
    marks: list[Any]
    has_bar: bool = False  # a colour bar stands for the legend, which would be too long

    def code(self, row: int) -> int:
        """The position of the mark of the run in that row."""
        return int(self.levels.codes[row]) if self.levels else 0

    @property
    def key(self) -> str | None:
        return self.levels.key if self.levels else None


def colours_of(found: Levels | None) -> Encoding:
    """Few names have colours that are far apart; numbers, and more names, lie along a map.

    By their order, or where a bar explains them by their size; null among numbers is grey.
    """
    if found is None or len(found.values) < 2:
        return Encoding(None, COLOURS[1:2])
    there = [value for value in found.values if not is_null(value)]
    are_numbers = all(map(_is_finite, there))
    if not are_numbers and len(found.values) <= len(COLOURS):
        return Encoding(found, COLOURS[: len(found.values)])
    has_bar = are_numbers and len(found.values) > MOST_ENTRIES
    places = np.linspace(0, 1, len(there))
    if has_bar:
        places = np.asarray(_norm_of(there)(np.array(there, dtype=float)))
    along = [colormaps[MAP](MAP_END * float(place)) for place in places]
    return Encoding(found, [MISSING] * (len(found.values) - len(there)) + along, has_bar)


def _norm_of(values: Sequence[float]) -> Normalize:
    return (LogNorm if spans(values, LOG_FROM) else Normalize)(min(values), max(values))


def styles_of(found: Levels | None, styles: Sequence[Any]) -> Encoding:
    """Raises UserError where there are more values than styles."""
    if found is None or len(found.values) < 2:
        return Encoding(None, [styles[0]])
    if len(found.values) > len(styles):
        expected = f"a key with at most {len(styles)} values, not {len(found.values)}"
        raise bad_value("style", found.key, expected)
    return Encoding(found, list(styles[: len(found.values)]))


def legend_entries(encoding: Encoding, handle: Callable[[Any], Any]) -> tuple[list[Any], list[str]]:
    """(handles, names), of at most MOST_ENTRIES values; handle(mark) makes a handle."""
    found = encoding.levels
    if found is None:
        return [], []
    listed = list(range(len(found.values)))
    if encoding.has_bar:
        listed = [i for i in listed if is_null(found.values[i])]  # the bar shows the others
    elif len(listed) > MOST_ENTRIES:
        listed = [int(i) for i in np.linspace(0, len(listed) - 1, MOST_ENTRIES - 1)]
    all_names, left_out = found.names, len(found.values) - len(listed)
    handles = [handle(encoding.marks[i]) for i in listed]
    names = [literal(all_names[i]) for i in listed]
    if left_out and not encoding.has_bar:
        handles.append(handle("none"))
        names.append(f"… and {left_out} more")
    return handles, names


def add_colour_bar(encoding: Encoding, axes: Sequence[Axes]) -> None:
    """Beside the axes."""
    assert encoding.levels is not None
    norm = _norm_of([value for value in encoding.levels.values if not is_null(value)])
    colours = ScalarMappable(norm, ListedColormap(colormaps[MAP](np.linspace(0, MAP_END, 256))))
    bar = axes[0].figure.colorbar(colours, ax=list(axes), pad=0.02, aspect=30)
    bar.set_label(literal(encoding.levels.key))
