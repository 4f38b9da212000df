"""Pictures of whole curves show what the curves are: looked up in the artists of each figure."""

import numpy as np
import pandas as pd
import pytest
from figures import LOSS, METRIC, batch, curve, drawn, entries, lines, texts
from matplotlib.colors import to_hex

from src.analysis.curves import CurveArray
from src.analysis.plots import learning_curves, to_target
from src.analysis.plots.curves import first_reached
from src.analysis.run_plot import COLOURS
from src.support.errors import UserError

# ---- Learning curves -------------------------------------------------------------------


def test_a_line_is_the_mean_over_seeds_of_one_setting(frame):
    figure = drawn(learning_curves(frame))
    found = lines(figure)
    assert len(found) == 6
    ends = sorted(line.get_ydata()[-1] for line in found)
    np.testing.assert_allclose(ends, [0.105, 0.205, 0.505, 0.605, 0.705, 0.805])
    assert all(line.get_xdata().tolist() == [1, 2] for line in found)
    assert figure.axes[0].get_xlabel() == "examples seen"
    assert entries(figure) == {"base_lr": ["0.01", "0.1", "1"], "optim_alg": ["adam", "sgd"]}


def test_settings_of_one_colour_are_lines_of_their_own(frame):
    found = lines(learning_curves(frame, colour="optim_alg", style="optim_alg"))
    assert len(found) == 6
    assert {to_hex(line.get_color()) for line in found} == {c.lower() for c in COLOURS[:2]}


def test_the_shade_is_the_interval_of_the_mean():
    rows = [({"base_lr": 1, "seed_model": s}, [v, 0.5]) for s, v in enumerate((0.2, 0.4, 0.6))]
    figure = learning_curves(batch(rows))
    (shade,) = figure.axes[0].collections
    points = shade.get_paths()[0].vertices
    first, last = (points[points[:, 0] == x][:, 1] for x in (1, 2))
    half = 4.30265 * 0.2 / 3**0.5  # Student's t of two degrees of freedom
    assert (first.min(), first.max()) == pytest.approx((0.4 - half, 0.4 + half), abs=1e-4)
    assert last.min() == last.max() == 0.5  # no width where all are equal
    assert not figure.legends
    assert "shade: 95 % Student's t interval of the mean" in texts(figure).replace("\n", " ")


SHORT = [(1, 0.1, 0.3, 0.5), (2, 0.3), (3, 0.2)]


def test_two_seeds_are_two_thin_lines_and_no_shade():
    rows = [({"seed_model": seed}, [0.1 * seed, 0.4]) for seed in (1, 2)]
    figure = drawn(learning_curves(batch(rows)))
    found = lines(figure, label="_seed")
    assert [line.get_ydata().tolist() for line in found] == [[0.1, 0.4], [0.2, 0.4]]
    assert not figure.axes[0].collections
    assert "thin: each of two seeds" in texts(figure).replace("\n", " ")
    assert "interval" not in texts(figure)


def test_where_only_some_seeds_are_the_line_is_dotted_and_has_no_shade():
    rows = [({"seed_model": s}, [x, x + 0.1, *rest]) for s, x, *rest in SHORT]
    figure = drawn(learning_curves(batch(rows)))
    (solid,), (dotted,) = lines(figure), lines(figure, label="_some seeds")
    np.testing.assert_allclose(solid.get_ydata(), [0.2, 0.3, np.nan, np.nan])
    np.testing.assert_allclose(dotted.get_ydata(), [np.nan, 0.3, 0.3, 0.5])
    assert dotted.get_linestyle() == ":"
    (shade,) = figure.axes[0].collections
    assert shade.get_paths()[0].vertices[:, 0].max() == 2


def test_a_diverged_run_ends_with_a_cross():
    rows = [({"seed_model": 1}, [3.0, 2.0, np.inf, np.nan])]
    figure = drawn(learning_curves(batch(rows, LOSS)))
    (line,) = lines(figure)
    assert line.get_ydata().tolist() == [3, 2]
    (cross,) = lines(figure, label="_diverged")
    assert (cross.get_marker(), cross.get_xdata().tolist()) == ("x", [2])
    assert cross.get_ydata().tolist() == [2]


def test_a_run_that_never_had_a_number_has_a_cross_at_the_edge():
    figure = drawn(learning_curves(batch([({"base_lr": 1}, [np.nan, np.nan])])))
    (cross,) = lines(figure, label="_diverged")
    assert cross.get_xdata().tolist() == [1]
    assert cross.get_transform() == figure.axes[0].get_xaxis_transform()


def test_a_single_point_is_a_marker():
    (line,) = lines(drawn(learning_curves(batch([({"base_lr": 1}, [0.5])]))))
    assert line.get_marker() == "o"
    assert list(line.get_markevery()) == [0]
    (longer,) = lines(drawn(learning_curves(batch([({"base_lr": 1}, [0.5, 0.6])]))))
    assert list(longer.get_markevery()) == []


@pytest.mark.parametrize(
    ("metric", "values", "scale"),
    [
        (LOSS, [2.1, 0.1], "log"),
        (LOSS, [1.9, 0.1], "linear"),
        (LOSS, [2.1, 0.0], "linear"),
        (LOSS, [2.1, -0.1], "linear"),
        (METRIC, [0.9, 0.001], "linear"),
    ],
)
def test_a_loss_that_spans_much_is_on_a_logarithmic_axis(metric, values, scale):
    figure = drawn(learning_curves(batch([({"base_lr": 1}, values)], metric)))
    assert figure.axes[0].get_yscale() == scale


def test_many_lines_are_thin_and_have_no_shade():
    rows = [({"base_lr": 0.1 * 1.1**i, "momentum": 0.1}, [0.1, i / 100]) for i in range(30)]
    figure = drawn(learning_curves(batch(rows, num_seeds=2)))
    assert len(lines(figure)) == 30
    assert not figure.axes[0].collections
    assert all(line.get_alpha() < 1 for line in lines(figure))
    assert not figure.legends
    assert figure.axes[1].get_ylabel() == "base_lr"  # the bar
    assert figure.axes[1].get_yscale() == "log"


# ---- The time to a target --------------------------------------------------------------


def test_the_first_time_at_the_target():
    curves = [curve(0.1, 0.6, 0.4, 0.7), curve(0.1), None, curve(np.nan, 0.5)]
    accuracy = pd.Series(CurveArray.of(curves, METRIC, "epoch"), name=METRIC)
    np.testing.assert_equal(first_reached(accuracy, 0.5), [2, np.inf, np.nan, 2])
    np.testing.assert_equal(first_reached(accuracy.rename(LOSS), 0.45), [1, 1, np.nan, np.inf])


def test_the_median_counts_those_that_never_arrive():
    reach = {1: (1, 1, 2), 2: (2, 4, None), 3: (3, None, None)}
    rows = [
        ({"base_lr": lr, "seed_model": s}, [0.0] * 4 if t is None else [0.0] * (t - 1) + [0.9] * 2)
        for lr, times in reach.items()
        for s, t in enumerate(times)
    ]
    figure = drawn(to_target(batch(rows), 0.5))
    axis = figure.axes[0]
    at = [line.get_xdata()[0] for line in lines(figure, label="_medians")]
    (begin, end) = (axis.patches[0].get_x(), axis.get_xlim()[1])
    assert at[:2] == [1, 4]
    assert begin < at[2] < end
    assert begin > 4  # no run's time lies on the grey
    assert [t.get_text() for t in axis.get_xticklabels()] == ["0", "1", "2", "3", "4", "never"]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["1", "2", "3"]
    seeds = lines(figure, label="_seeds")
    assert [len(line.get_xdata()) for line in seeds] == [3, 3, 3]


@pytest.mark.parametrize("longest", [3, 30_000])
def test_the_axis_of_times_has_its_numbers_where_some_never_arrive(longest):
    """Also in panels, which share it."""
    rows = [({"optim_alg": name, "model": m, "base_lr": 1}, [0.0]) for name in "abc" for m in "xy"]
    reach = [2, 2, longest, longest, None, None]
    frame = batch(rows)
    points = [(np.array([0.0, float(end is not None)]), np.array([1, end or 9])) for end in reach]
    frame[METRIC] = CurveArray.of(points, METRIC, "train/seen_examples")
    for picture in (to_target(frame, 0.5), to_target(frame, 0.5, key="optim_alg", col="model")):
        axis = drawn(picture).axes[0]
        is_across = axis.get_xlabel().startswith("examples")
        of_times = axis.get_xticklabels() if is_across else axis.get_yticklabels()
        *numbers, last = [tick.get_text() for tick in of_times]
        assert last == "never"
        assert len(numbers) > 2
        assert all(numbers)


def test_where_all_arrive_nothing_is_grey(frame):
    figure = drawn(to_target(frame, 0.1, key="base_lr", colour="optim_alg"))
    axis = figure.axes[0]
    assert not axis.patches
    assert not axis.texts
    assert [line.get_ydata().tolist() for line in lines(figure, label="_medians")] == [[1] * 3] * 2
    with pytest.raises(UserError, match="target: got nan, expected a value of the metric"):
        to_target(frame, float("nan"))
