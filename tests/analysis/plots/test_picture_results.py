"""Pictures of one number a setting: looked up in the artists of each figure."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from figures import LOSS, METRIC, bars, batch, curve, drawn, lines, texts

from src.analysis.curves import CurveArray
from src.analysis.plots import against, heat_map, tradeoff
from src.analysis.plots.results import pareto
from src.support.errors import UserError

# ---- Against a key ---------------------------------------------------------------------


def test_the_best_of_the_rest_and_its_interval(frame):
    keys = {"optim_alg": "sgd", "base_lr": 0.1, "momentum": 0.7}
    worse = batch([(keys, [0.0, 0.05])], num_seeds=2)
    both = pd.concat([frame.assign(momentum=0.0), worse], ignore_index=True)
    figure = drawn(against(both, "base_lr", colour="optim_alg", style="optim_alg"))
    adam, sgd = bars(figure)
    assert sgd[0] == [0.01, 0.1, 1.0]
    np.testing.assert_allclose(sgd[1], [0.505, 0.805, 0.605])
    np.testing.assert_allclose(adam[1], [0.105, 0.205, 0.705])
    half = 0.005  # two seeds: each of them
    np.testing.assert_allclose(sgd[2][1], [[0.1, 0.805 - half], [0.1, 0.805 + half]], 1e-4)
    assert figure.axes[0].get_xscale() == "log"
    ticks = figure.axes[0].get_xticklabels()
    assert [tick.get_text() for tick in ticks] == ["0.01", "0.1", "1"]


def test_when_is_said_and_used():
    figure = against(batch([({"base_lr": 1}, [0.9, 0.5])]), "base_lr", when="best")
    assert bars(figure)[0][1] == [0.9]
    assert figure.axes[0].get_ylabel() == f"{METRIC} (best)"
    assert against(batch([({"x": 1}, [1])]), "x", when=1).axes[0].get_ylabel().endswith("(at 1)")


def test_every_setting_is_a_point(frame):
    figure = drawn(against(frame, "base_lr", which="every", colour="optim_alg"))
    found = sorted((line.get_ydata().tolist() for line in figure.axes[0].lines), key=sum)
    np.testing.assert_allclose(found, [[0.105, 0.205, 0.705], [0.505, 0.805, 0.605]])
    with pytest.raises(UserError, match="which: got 'all', expected 'best' or 'every'"):
        against(frame, "base_lr", which="all")


def test_names_are_on_the_axis_and_not_joined(frame):
    figure = drawn(against(frame, "optim_alg", colour="base_lr"))
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["adam", "sgd"]
    assert all(line.get_linestyle() == "None" for line in figure.axes[0].lines)
    assert [means for _, means, _ in bars(figure)][1] == pytest.approx([0.205, 0.805])


def test_the_setting_is_chosen_on_one_split_and_shown_on_the_other():
    rows = [({"base_lr": 1, "momentum": m}, [v]) for m, v in ((0, 0.9), (1, 0.3))]
    frame = batch(rows)
    frame["val/last/accuracy"] = CurveArray.of([curve(0.2), curve(0.8)], "val", "epoch")
    plain = {"colour": "batch", "style": "batch"}
    assert bars(against(frame, "base_lr", **plain))[0][1] == [0.3]
    assert bars(against(frame, "base_lr", METRIC, **plain))[0][1] == [0.9]


def test_where_all_diverged_is_a_gap_and_a_mark_at_the_edge():
    values = {0.1: [0.5], 0.2: [np.nan], 0.3: [0.7], 0.4: None}
    rows = [({"base_lr": lr}, v) for lr, v in values.items()]
    for which in ("best", "every"):
        figure = drawn(against(batch(rows), "base_lr", which=which))
        (mark,) = lines(figure, label="_diverged")
        assert mark.get_xdata().tolist() == [0.2]
        y = next(line.get_ydata() for line in figure.axes[0].lines if line is not mark)
        np.testing.assert_equal(np.array(y), [0.5, np.nan, 0.7, np.nan])


def test_a_seed_that_diverged_is_not_left_out_of_the_mean():
    rows = [({"base_lr": 1, "seed_model": s}, [v]) for s, v in enumerate((0.9, np.nan))]
    rows += [({"base_lr": 2, "seed_model": s}, v) for s, v in enumerate(([0.4], None))]
    figure = drawn(against(batch(rows), "base_lr"))
    np.testing.assert_equal(np.array(bars(figure)[0][1]), [np.nan, 0.4])


def test_what_may_still_change_is_said(frame):
    assert "not done" not in texts(against(frame, "base_lr"))
    frame["state"] = ["running", *["done"] * 11]
    for figure in (against(frame, "base_lr"), heat_map(frame, "base_lr", "optim_alg")):
        assert "not done: 1 running" in texts(figure).replace("\n", " ")


def test_numbers_too_close_for_their_axis_stand_side_by_side():
    rows = [({"weight_decay": decay}, [0.5]) for decay in (0.0, 1e-4, 0.1)]
    figure = drawn(against(batch(rows), "weight_decay"))
    assert bars(figure)[0][0] == [0, 1, 2]
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["0", "0.0001", "0.1"]
    even = [({"weight_decay": decay}, [0.5]) for decay in (0.0, 0.1, 0.2)]
    assert bars(drawn(against(batch(even), "weight_decay")))[0][0] == [0.0, 0.1, 0.2]


# ---- Two keys --------------------------------------------------------------------------


def test_cells_hold_the_best_of_the_rest(frame):
    figure = drawn(heat_map(frame, "base_lr", "optim_alg"))
    axis, bar = figure.axes
    expected = [[0.105, 0.205, 0.705], [0.505, 0.805, 0.605]]
    np.testing.assert_allclose(axis.images[0].get_array(), expected)
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0.01", "0.1", "1"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["adam", "sgd"]
    assert {t.get_text() for t in axis.texts} >= {"0.805", "0.105"}
    (framed,) = axis.patches
    assert framed.get_xy() == (0.5, 0.5)
    assert bar.get_ylabel() == METRIC


def brightness(image: Any, value: float) -> float:
    return float(np.dot(image.cmap(image.norm(value))[:3], [0.3, 0.59, 0.11]))


@pytest.mark.parametrize(("metric", "best", "worst"), [(METRIC, 0.9, 0.1), (LOSS, 0.1, 0.9)])
def test_better_is_brighter(metric, best, worst):
    rows = [({"x": x, "y": 0}, [v]) for x, v in enumerate((best, worst))]
    rows += [({"x": 0, "y": 1}, [np.nan])]
    axis = drawn(heat_map(batch(rows, metric), "x", "y")).axes[0]
    image = axis.images[0]
    assert brightness(image, best) > 0.7
    assert brightness(image, worst) < 0.3
    hatched = [p.get_xy() for p in axis.patches if p.get_hatch()]
    assert hatched == [(0.5, 0.5)]  # nothing there; what diverged has a cross
    assert [t.get_position() for t in axis.texts if t.get_text() == "×"] == [(0, 1)]


def numbers_in(axis: Any) -> list[str]:
    return [t.get_text() for t in axis.texts if t.get_text() != "×"]


@pytest.mark.parametrize("shape", [(2, 3), (8, 5), (13, 9), (40, 40)])
def test_cells_have_numbers_where_they_fit(shape):
    cells = product(*map(range, shape))
    rows = [({"x": x, "y": y}, [0.9 - x / 90 - y / 95]) for x, y in cells]
    figure = drawn(heat_map(batch(rows), "x", "y"))
    axis = figure.axes[0]
    assert len(numbers_in(axis)) == (0 if shape == (40, 40) else shape[0] * shape[1])
    cell = axis.transData.transform([[0, 0], [1, 1]])
    width, height = cell[1] - cell[0]
    for text in axis.texts:
        box = text.get_window_extent()
        assert box.width < width
        assert text.get_fontsize() * figure.dpi / 72 < height


def test_panels_of_a_heat_map_have_numbers_too():
    cells = product(range(6), range(2), "ab")
    rows = [({"x": x, "y": y, "m": m}, [0.5 + x / 20]) for x, y, m in cells]
    figure = drawn(heat_map(batch(rows), "x", "y", col="m"))
    assert [len(numbers_in(axis)) for axis in figure.axes[:2]] == [12, 12]


@pytest.mark.parametrize(("metric", "outlier", "end"), [(METRIC, 0.1, "min"), (LOSS, 1e6, "max")])
def test_an_outlier_does_not_take_all_colours(metric, outlier, end):
    rows = [({"x": x, "y": y}, [0.9 + x / 100 + y / 100]) for x in range(5) for y in range(4)]
    rows[7] = (rows[7][0], [outlier])
    figure = drawn(heat_map(batch(rows, metric), "x", "y"))
    image, colour_bar = figure.axes[0].images[0], figure.axes[1]
    assert (image.norm.vmin, image.norm.vmax) == pytest.approx((0.9, 0.97))
    side = {"min": "0.9: 1 cell is below", "max": "0.97: 1 cell is above"}[end]
    assert f"colours end at {side}" in texts(figure)
    assert colour_bar._colorbar.extend == end
    whole = drawn(heat_map(batch(rows, metric), "x", "y", robust=False))
    norm = whole.axes[0].images[0].norm
    assert (norm.vmin, norm.vmax) == pytest.approx((min(outlier, 0.9), max(outlier, 0.97)))
    assert "colours end" not in texts(whole)


def test_where_cells_are_alike_but_few_no_colours_are_taken_from_those_few():
    cells = product(range(4), range(5))
    rows = [({"x": x, "y": y}, [0.9 if x == 3 and y > 2 else 0.1]) for x, y in cells]
    norm = drawn(heat_map(batch(rows), "x", "y")).axes[0].images[0].norm
    assert (norm.vmin, norm.vmax) == (0.1, 0.9)


def test_panels_of_a_heat_map_share_their_colours(frame):
    frame["momentum"] = np.where(frame["base_lr"] < 0.05, 0.9, 0.0)  # where the lowest is
    figure = drawn(heat_map(frame, "base_lr", "optim_alg", col="momentum"))
    norms = [axis.images[0].norm for axis in figure.axes if axis.images]
    assert len(norms) == 2
    assert norms[0] is norms[1]
    assert (norms[0].vmin, norms[0].vmax) == pytest.approx((0.105, 0.805))


# ---- Two metrics -----------------------------------------------------------------------


def dominated(points: np.ndarray, signs: tuple[int, int]) -> np.ndarray:
    """(n,) The definition, pair by pair."""
    gains = points * np.array(signs)
    return np.array([((gains >= g).all(axis=1) & (gains > g).any(axis=1)).any() for g in gains])


@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_the_front_is_what_nothing_dominates(signs):
    points = np.random.default_rng(0).integers(0, 12, size=(40, 2)).astype(float)
    front = pareto(np.concatenate([points, [[np.nan, 0.0]]]), signs)
    expected = np.unique(points[~dominated(points, signs)], axis=0)
    np.testing.assert_equal(front, expected)
    assert len(pareto(points[:0], signs)) == 0


def test_a_point_is_a_setting_and_the_front_a_step():
    rows = [({"base_lr": lr}, [v]) for lr, v in ((1, 0.5), (2, 0.4), (3, 0.8))]
    figure = drawn(tradeoff(batch(rows), "seconds", METRIC))
    points = np.concatenate([c.get_offsets() for c in figure.axes[0].collections])
    np.testing.assert_allclose(points, [[1, 0.5], [2, 0.4], [3, 0.8]])
    (front,) = lines(figure, label="_front")
    assert front.get_xydata().tolist() == [[1, 0.5], [3, 0.8]]
    assert front.get_drawstyle() == "steps-post"
    with pytest.raises(UserError, match="which way is better"):
        tradeoff(batch(rows), "base_lr", METRIC)
