"""Values as text: different where the values are, as wide as there is room, drawn as they are."""

from itertools import pairwise

import pandas as pd
import pytest
from figures import LOSS, batch, drawn, entries, lines, texts
from matplotlib import cbook
from matplotlib.colors import to_hex
from matplotlib.text import Text

from src.analysis.plots import against, heat_map, learning_curves, summary, to_target, tradeoff
from src.analysis.plots.encoding import levels
from src.analysis.run_plot import COLOURS

LONG = "a/very/long/path/of/models/that/nobody/wants/to/read/"
VALUES = {
    "ends": [LONG + "left", LONG + "right"],
    "middles": [f"{LONG}{number}/{LONG}" for number in range(3)],
    "beside others": [LONG + "left", LONG + "right", "x", "", LONG],
    "ends in groups": [c * 40 + end for c in "ab" for end in ("left", "right")],
    "in two places": [f"{LONG}{a}{LONG}{b}{LONG}" for a in "ab" for b in "cd"],
    "numbers as strings": ["0.9", 0.9, "null", None, "true", True, "[1]", [1], "1e-3", ""],
    "near numbers": [0.123456, 0.123457, 100000.2, 100000.3],
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_names_are_short_and_different_where_values_are(values):
    names = levels(pd.DataFrame({"key": pd.Series(values, dtype=object)}), "key").names
    assert len(set(names)) == len(values)
    assert max(map(len, names)) <= 30


def test_strings_that_look_like_other_values_are_quoted():
    names = levels(pd.DataFrame({"key": pd.Series(["0.9", 0.9, "x"], dtype=object)}), "key").names
    assert sorted(names) == ["'0.9'", "0.9", "x"]
    alone = levels(pd.DataFrame({"key": ["8", "16"]}), "key").names
    assert sorted(alone) == ["16", "8"]


@pytest.mark.parametrize(("num", "letter"), [(2, "W"), (4, "i"), (6, "W")])
def test_titles_are_no_wider_than_their_panel_and_different(num, letter):
    names = [letter * 60 + str(i) + letter * 60 for i in range(num)]
    rows = [({"model": n, "optim_alg": m}, [0.1, 0.5]) for n in names for m in (LONG, "x")]
    figure = drawn(learning_curves(batch(rows), col="model", colour="optim_alg"))
    titles = [axis.title for axis in figure.axes]
    assert len({title.get_text() for title in titles}) == num
    boxes = sorted((t.get_window_extent() for t in titles), key=lambda b: (-round(b.y0), b.x0))
    assert all(a.x1 < b.x0 or b.y1 < a.y0 for a, b in pairwise(boxes))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


# ---- Rows of settings --------------------------------------------------------------------


def rows_of(figure) -> list[str]:
    return [tick.get_text() for tick in figure.axes[0].get_yticklabels()]


def test_rows_of_settings_differ_in_their_names():
    rows = [
        ({"model": f"{LONG}{i}", "optim_alg": "adam-with-a-long-name", "base_lr": lr}, [0.1, 0.9])
        for i in range(2)
        for lr in (0.1, 0.2)
    ]
    names = rows_of(drawn(to_target(batch(rows), 0.5)))
    assert len(set(names)) == 4
    assert all("adam" not in name for name in names)  # all have it


def test_many_keys_of_rows_stand_in_lines_that_do_not_meet():
    keys = ["model", "optim_alg", "base_lr", "momentum", "batch_size", "weight_decay", "averaging"]
    rows = [({k: f"{k}-{i}-{'x' * 20}" for k in keys}, [0.1, 0.9]) for i in range(12)]
    for row, (values, _) in enumerate(rows):
        values |= {key: values[key] + str(row % n) for n, key in enumerate(keys, start=2)}
    figure = drawn(to_target(batch(rows), 0.5))
    boxes = [tick.get_window_extent() for tick in figure.axes[0].get_yticklabels()]
    assert all(below.y1 <= above.y0 + 1 for above, below in pairwise(boxes))


def test_colours_of_rows_are_told_or_are_one():
    rows = [({"optim_alg": a, "base_lr": lr}, [0.1, 0.9]) for a in ("x", "y") for lr in (1, 2)]
    plain = drawn(to_target(batch(rows), 0.5))
    assert {line.get_color() for line in lines(plain, label="_medians")} == {COLOURS[1]}
    assert {line.get_marker() for line in lines(plain, label="_medians")} == {"o"}
    coloured = drawn(to_target(batch(rows), 0.5, colour="optim_alg", style="base_lr"))
    assert entries(coloured) == {"optim_alg": ["x", "y"], "base_lr": ["1", "2"]}


# ---- Many names --------------------------------------------------------------------------


def test_more_names_than_colours_are_along_a_map():
    rows = [({"model": f"m{i:02}"}, [0.1, i / 40]) for i in range(15)]
    figure = drawn(learning_curves(batch(rows)))
    assert len({to_hex(line.get_color()) for line in lines(figure)}) == 15
    assert entries(figure)["model"][-1] == "… and 4 more"


# ---- Mathematics -------------------------------------------------------------------------

DOLLARS = r"a$\foo$"


def test_what_data_call_themselves_is_no_mathematics():
    """Nor is it where it stands between the dollars of two values."""
    metric = f"test/{DOLLARS}/loss"
    rows = [
        ({"model": f"{DOLLARS}{i}", "base_lr": lr, DOLLARS: i}, [9.0, 0.01 + i])
        for i in range(2)
        for lr in (0.1, 0.2)
    ]
    frame = batch(rows, metric)
    frame["batch"] = DOLLARS
    frame.attrs["keys"] = ["model", "base_lr", DOLLARS]
    many = batch([({DOLLARS: float(i)}, [9.0, 0.01 + i]) for i in range(20)], metric)
    many.attrs["keys"] = [DOLLARS]
    some = {"row": "model", "col": DOLLARS}
    figures = [
        learning_curves(frame, metric, colour="model", style=DOLLARS),
        learning_curves(frame, metric, **some),
        learning_curves(many, metric),
        against(frame, "model", metric, colour=DOLLARS),
        against(frame, DOLLARS, metric),
        heat_map(frame, "model", DOLLARS, metric),
        tradeoff(frame, "seconds", metric, col="model"),
        to_target(frame, 1.0, metric, colour=DOLLARS),
        to_target(frame, 1.0, metric, key="model"),
        summary(frame, metric),
        summary(frame.iloc[:1], metric),
    ]
    for figure in map(drawn, figures):
        assert "foo" in texts(figure)
        for text in figure.findobj(Text):
            is_data = "foo" in text.get_text()
            assert not (is_data and cbook.is_math_text(text.get_text())), text


def test_a_dollar_is_drawn_as_it_stands():
    figure = drawn(against(batch([({"model": r"a\$b$"}, [0.5])]), "model"))
    (tick,) = figure.axes[0].get_xticklabels()
    assert tick._preprocess_math(tick.get_text()) == (r"a\$b$", False)


# ---- Ticks -------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "most"), [([10.0, 1e-5], 8), ([10.0, 0.1], 8)])
def test_a_logarithmic_axis_has_a_few_ticks_however_long_it_is(values, most):
    rows = [({"base_lr": 1, "optim_alg": a}, values) for a in "xy"]
    frame = batch(rows, LOSS)
    for picture in (learning_curves(frame), learning_curves(frame, col="optim_alg")):
        axis = drawn(picture).axes[0]
        low, high = axis.get_ylim()
        seen = [t for t in axis.get_yticks() if low <= t <= high]
        named = [t for t in axis.yaxis.get_ticklabels(which="both") if t.get_text()]
        assert 2 < len(seen) <= most
        assert len(named) <= most + 4  # some beyond the ends
