"""What all pictures share: panels, colours, legends, captions, axes."""

import numpy as np
import pytest
from figures import LOSS, METRIC, batch, drawn, entries, panels, texts
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from src.analysis.choice import ChoiceWarning
from src.analysis.plots import against, heat_map, learning_curves, to_target, tradeoff
from src.support.errors import UserError


def lines_of(axis) -> list:
    """Those of settings."""
    return [line for line in axis.lines if line.get_label() == "_setting"]


# ---- Panels ----------------------------------------------------------------------------


def test_panels_are_named_and_hold_their_own_runs(frame):
    figure = drawn(learning_curves(frame, row="optim_alg", col="base_lr"))
    found = panels(figure)
    assert len(found) == 6
    (line,) = lines_of(found["optim_alg=sgd\nbase_lr=0.1"])
    np.testing.assert_allclose(line.get_ydata(), [0.105, 0.805])
    assert not figure.legends
    limits = {axis.get_ylim() for axis in figure.axes}
    assert len(limits) == 1
    assert [axis.get_xlabel() for axis in figure.axes] == [""] * 3 + ["examples seen"] * 3
    assert [bool(axis.get_ylabel()) for axis in figure.axes] == [True, False, False] * 2
    assert figure.get_figwidth() > learning_curves(frame).get_figwidth()


def test_a_panel_without_runs_says_so(frame):
    some = frame[(frame["optim_alg"] == "sgd") | (frame["base_lr"] == 1.0)]
    found = panels(drawn(learning_curves(some, row="optim_alg", col="base_lr")))
    assert [t.get_text() for t in found["optim_alg=adam\nbase_lr=0.1"].texts] == ["no runs"]
    assert not found["optim_alg=sgd\nbase_lr=0.1"].texts


def test_columns_alone_are_wrapped_and_a_grid_is_refused_past_its_width():
    rows = [({"momentum": i / 10, "base_lr": lr}, [i / 10]) for i in range(9) for lr in (1, 2)]
    figure = drawn(learning_curves(batch(rows), col="momentum"))
    places = [axis.get_subplotspec() for axis in figure.axes]
    assert (places[0].get_gridspec().nrows, places[0].get_gridspec().ncols) == (3, 4)
    has_label = [bool(axis.get_xlabel()) for axis in figure.axes]
    assert has_label == [False] * 5 + [True] * 4  # those with no panel under them
    with pytest.raises(UserError, match="col: got 'momentum', expected a key with at most 8"):
        learning_curves(batch(rows), row="base_lr", col="momentum")


def test_an_axis_that_is_given_is_drawn_into_and_holds_one_panel(frame):
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    assert learning_curves(frame, ax=right) is figure
    drawn(figure)
    assert (len(lines_of(left)), len(lines_of(right))) == (0, 6)
    beside = [a for a in right.artists if hasattr(a, "get_texts")]
    assert {legend.get_title().get_text() for legend in beside} == {"base_lr", "optim_alg"}
    box = right.get_window_extent()
    assert all(legend.get_window_extent().x0 >= box.x1 - 1 for legend in beside)
    assert max(legend.get_window_extent().x1 for legend in beside) <= figure.bbox.x1 + 2
    for facets in ({"row": "optim_alg"}, {"col": "optim_alg"}):
        with pytest.raises(UserError, match="got 'optim_alg' beside ax, which is one panel"):
            learning_curves(frame, ax=right, **facets)


# ---- Colours and legends ---------------------------------------------------------------


def test_what_is_constant_or_said_already_has_no_legend(frame):
    assert set(entries(learning_curves(frame, colour="batch"))) == {"base_lr"}  # by styles
    frame["train_length"] = frame["optim_alg"].map({"sgd": 5, "adam": 20})
    frame = frame[frame["base_lr"] == 0.1]
    assert set(entries(learning_curves(frame, colour="train_length"))) == {"train_length"}
    assert not entries(learning_curves(frame, col="train_length"))


def test_a_key_with_colours_and_styles_has_one_legend(frame):
    figure = learning_curves(frame, colour="optim_alg", style="optim_alg")
    (legend,) = figure.legends
    assert [line.get_linestyle() for line in legend.legend_handles] == ["-", "--"]
    assert len({to_hex(line.get_color()) for line in legend.legend_handles}) == 2


def test_many_names_are_along_a_map_and_the_legend_says_how_many_are_left_out():
    rows = [({"model": f"family/model-{i:02}"}, [i / 40]) for i in range(40)]
    figure = drawn(against(batch(rows), "seconds", colour="model"))
    (names,) = entries(figure).values()
    assert len(names) == 12
    assert names[0] == "family/model-00"
    assert names[-1] == "… and 29 more"


def test_long_names_are_short_and_different():
    rows = [({"model": "a/very/long/path/" * 4 + name}, [0.5]) for name in ("left", "right")]
    (names,) = entries(drawn(learning_curves(batch(rows)))).values()
    assert names == ["…left", "…right"]


def test_null_among_numbers_is_grey():
    rows = [({"clip_norm": value}, [0.5]) for value in (None, 1.0, 2.0)]
    figure = drawn(learning_curves(batch(rows)))
    assert entries(figure) == {"clip_norm": ["null", "1", "2"]}
    grey = figure.legends[0].legend_handles[0].get_color()
    assert to_hex(grey) == "#999999"


def test_legends_do_not_cover_data(frame):
    for figure in (drawn(learning_curves(frame)), drawn(against(frame, "base_lr"))):
        box = figure.axes[0].get_tightbbox()
        assert len(figure.legends) > 0
        for legend in figure.legends:
            assert not legend.get_window_extent().padded(-1).overlaps(box)


# ---- Axes and captions -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "good", "bad"), [(METRIC, (0.95, 0.96, 0.97), 0.1), (LOSS, (0.11, 0.1, 0.09), 0.7)]
)
def test_what_is_far_worse_than_the_contest_is_marked_at_the_edge(metric, good, bad):
    ends = dict(zip((0.1, 0.2, 0.3, 0.4), (*good, bad), strict=True))
    frame = batch([({"base_lr": lr}, [end] * 2) for lr, end in ends.items()], metric)
    for figure in (drawn(against(frame, "base_lr")), drawn(learning_curves(frame))):
        low, high = figure.axes[0].get_ylim()
        assert low < min(good) < max(good) < high
        assert not low < bad < high
        assert high - low < 0.3
        assert "some leave the picture" in texts(figure).replace("\n", " ")
    (mark,) = [x for x in against(frame, "base_lr").axes[0].lines if x.get_label() == "_far"]
    assert mark.get_xdata().tolist() == [0.4]
    assert mark.get_marker() == ("v" if bad < min(good) else "^")
    assert "leave" not in texts(against(frame[:3], "base_lr"))


def test_losses_that_mean_other_things_are_warned_of_and_said():
    settings = [{"label_smoothing": s, "base_lr": lr} for s in (0.0, 0.1) for lr in (1, 2)]
    frame = batch([(setting, [0.5]) for setting in settings], LOSS)
    words = r"not comparable: test/last/loss: runs differ in label_smoothing \(0, 0.1\)"
    for draw in (
        lambda **keys: against(frame, "base_lr", **keys),
        lambda **keys: learning_curves(frame, **keys),
        lambda **keys: heat_map(frame, "base_lr", "batch", **keys),
        lambda **keys: tradeoff(frame, "seconds", LOSS, **keys),
        lambda **keys: to_target(frame, 0.6, **keys),
    ):
        with pytest.warns(ChoiceWarning, match=words) as found:
            figure = draw()
        assert found[0].filename == __file__
        assert "not comparable: test/last/loss" in texts(figure).replace("\n", " ")
        draw(col="label_smoothing")  # in each panel they are alike
    against(frame.rename(columns={LOSS: METRIC}), "base_lr")


def test_how_many_seeds_a_mean_is_over_counts_those_that_have_begun():
    rows = [({"base_lr": 1, "seed_model": s}, v) for s, v in enumerate(([0.1], [0.2], None))]
    rows += [({"base_lr": 2, "seed_model": 0}, None)]
    assert "mean over 2 seeds, thin: each of two" in texts(learning_curves(batch(rows)))
    assert "mean over 2 seeds, bars: each of two" in texts(against(batch(rows), "batch"))
    assert "seeds" not in texts(learning_curves(batch(rows[:1])))


def test_a_panel_whose_runs_have_no_values_says_so():
    rows = [({"base_lr": 1}, [0.1]), ({"base_lr": 2}, None)]
    for picture in (learning_curves, lambda df, **keys: against(df, "batch", **keys)):
        found = panels(drawn(picture(batch(rows), col="base_lr")))
        assert [t.get_text() for t in found["base_lr=2"].texts] == ["no values"]
        assert not found["base_lr=1"].texts
