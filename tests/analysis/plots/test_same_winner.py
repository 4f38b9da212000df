"""Pictures, the page and choose() name the same setting, whatever is missing or diverged."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from figures import LOSS, METRIC, bars, batch, curve, drawn, entries, lines, texts

from src.analysis import best_settings, choose, table
from src.analysis.curves import CurveArray, direction_of, last
from src.analysis.page import MOST_CURVES
from src.analysis.plots import against, heat_map, learning_curves, summary, tradeoff
from src.analysis.settings import scores_by, settings_of
from src.grid.folders import Row
from src.grid.reports import rank_settings
from src.grid.status import RowStatus

VALIDATION = "val/last/accuracy"
PLAIN = {"colour": "batch", "style": "batch"}  # one series


def seeds_of_rates(values: dict[float, list], metric: str = METRIC) -> pd.DataFrame:
    """values: of each base_lr those of its seeds; None: never begun."""
    rows = [
        ({"base_lr": lr, "seed_model": s}, v if v is None else [v])
        for lr, seeds in values.items()
        for s, v in enumerate(seeds)
    ]
    return batch(rows, metric)


def chosen(df: pd.DataFrame, by: str, keys: list[str]) -> tuple:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(choose(df, by, by)[keys].iloc[0])


def anything(seed: int) -> pd.DataFrame:
    """Settings some of whose seeds diverged, or have no value, or are not there, or there twice."""
    rng = np.random.default_rng(seed)
    rows = [
        ({"base_lr": lr, "momentum": m, "seed_model": s}, [round(rng.random(), 1)])
        for lr in range(5)
        for m in range(4)
        for s in (0, 1, 1)
    ]
    rows = [(keys, v if rng.random() > 0.2 else None) for keys, v in rows]
    frame = batch(rows)
    frame["outcome"] = np.where(rng.random(len(frame)) < 0.2, "diverged", "finished")
    return frame[rng.random(len(frame)) < 0.8].reset_index(drop=True)


@pytest.mark.parametrize("metric", [METRIC, LOSS])
@pytest.mark.parametrize("seed", range(20))
def test_there_is_one_ranking(seed, metric):
    frame = anything(seed).rename(columns={METRIC: metric})
    keys = ["base_lr", "momentum"]
    expected = chosen(frame, metric, keys)
    settings, judged = settings_of(frame, []), scores_by(frame, metric)
    best = judged.best(settings, direction_of(metric))
    assert tuple(best.values[key] for key in keys) == expected
    first = best_settings(frame, metric).iloc[0]
    assert tuple(first[keys]) == expected
    assert len(settings) > MOST_CURVES


VALUES = {0.1: [0.5, 0.5], 0.2: [0.9, None], 0.3: [0.8, np.nan], 0.4: [0.4, 0.3]}


def test_a_setting_that_lacks_a_seed_wins_nothing_where_another_is_complete():
    frame = seeds_of_rates(VALUES)
    assert chosen(frame, METRIC, ["base_lr"]) == (0.1,)
    ((_, means, _),) = bars(drawn(against(frame, "batch", METRIC, **PLAIN)))
    assert means == [0.5]
    axis = drawn(heat_map(frame, "base_lr", "batch", METRIC)).axes[0]
    assert [p.get_xy() for p in axis.patches if not p.get_hatch()] == [(-0.5, -0.5)]
    said = texts(drawn(summary(frame)))
    assert said.index("\n0.1\n0.5\n") < said.index("\n0.4\n0.35 (") < said.index("\n0.2\n0.9")


def test_the_best_of_what_is_incomplete_wins_where_nothing_is_complete():
    frame = seeds_of_rates({0.1: [0.5, None], 0.2: [0.9, np.nan], 0.3: [None, None]})
    assert chosen(frame, METRIC, ["base_lr"]) == (0.2,)
    figure = drawn(against(frame, "batch", METRIC, **PLAIN))
    assert len(lines(figure, label="_diverged")) == 1
    axis = drawn(heat_map(frame, "base_lr", "batch", METRIC)).axes[0]
    assert [p.get_xy() for p in axis.patches if not p.get_hatch()] == [(0.5, -0.5)]
    assert "\n0.2\n0.9 (of 2 seeds, 1 diverged)" in texts(drawn(summary(frame)))


def test_a_seed_that_is_no_row_is_missing():
    frame = seeds_of_rates({0.1: [0.5, 0.5], 0.2: [0.9]})
    assert chosen(frame, METRIC, ["base_lr"]) == (0.1,)
    assert bars(drawn(against(frame, "batch", METRIC, **PLAIN)))[0][1] == [0.5]


def test_a_failed_run_has_no_value_and_has_not_diverged():
    frame = seeds_of_rates({0.1: [0.5, 0.4], 0.2: [0.9, 0.8]})
    frame["state"] = ["done", "done", "done", "failed"]
    assert chosen(frame, METRIC, ["base_lr"]) == (0.1,)
    figure = drawn(against(frame, "base_lr", METRIC))
    assert bars(figure)[0][1] == pytest.approx([0.45, 0.9])
    assert not lines(figure, label="_diverged")


def test_report_and_choose_rank_alike():
    """Whatever is missing, of what is read of the same runs."""
    for seed in range(20):
        frame = anything(seed)
        keys = frame[["base_lr", "momentum", "seed_model"]].assign(seed_training=0)
        rows = [Row(Path(str(i)), values) for i, values in enumerate(keys.to_dict("records"))]
        pairs = zip(rows, frame["outcome"], strict=True)
        statuses = [RowStatus(row, "done", outcome=outcome) for row, outcome in pairs]
        ends = last(frame[METRIC]).tolist()
        stats = {str(i): f",{METRIC}\n0,{end}" for i, end in enumerate(ends)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table_of_all = table(frame, METRIC)
        found = rank_settings(statuses, stats, [METRIC])
        expected = table_of_all[table_of_all["num_seeds"] + table_of_all["num_diverged"] > 0]
        assert len(found) == len(expected)
        for best, (_, row) in zip(found, expected.iterrows(), strict=True):
            assert best.standing.num_seeds == row["num_seeds"]
            assert best.standing.num_expected == row["num_expected"]
            assert best.standing.num_diverged == row["num_diverged"]
            np.testing.assert_allclose(best.standing.mean, row[METRIC])
            np.testing.assert_allclose(best.standing.std, row[f"{METRIC} std"], atol=1e-12)


def test_the_frame_is_where_choose_chooses():
    """By validation, though another one is better on test."""
    frame = batch([({"base_lr": 1}, [0.9]), ({"base_lr": 2}, [0.3])])
    frame[VALIDATION] = CurveArray.of([curve(0.2), curve(0.8)], VALIDATION, "epoch")
    assert chosen(frame, VALIDATION, ["base_lr"]) == (2,)
    axis = drawn(heat_map(frame, "base_lr", "batch")).axes[0]
    assert [patch.get_xy() for patch in axis.patches] == [(0.5, -0.5)]


# ---- Diverged ----------------------------------------------------------------------------


def test_what_diverged_is_broken_whatever_it_reached_before():
    frame = seeds_of_rates({0.1: [0.9], 0.2: [0.5]})
    frame["outcome"] = ["diverged", "finished"]
    figure = drawn(against(frame, "base_lr"))
    (cross,) = lines(figure, label="_diverged")
    assert cross.get_xdata().tolist() == [0.1]
    assert "x: diverged" in texts(figure)
    np.testing.assert_equal(bars(figure)[0][1], [np.nan, 0.5])
    assert scores_by(frame, "seconds").is_diverged.tolist() == [True, False]
    curves = drawn(learning_curves(frame))
    (cross,) = lines(curves, label="_diverged")
    assert cross.get_ydata().tolist() == [0.9]
    assert entries(curves) == {"base_lr": ["0.1", "0.2"]}


# ---- Two metrics of the same seeds -------------------------------------------------------


def points(figure) -> list[list[float]]:
    return np.concatenate([c.get_offsets() for c in figure.axes[0].collections]).tolist()


def test_both_means_of_a_point_are_over_the_same_seeds():
    frame = seeds_of_rates({0.1: [0.2, 0.4, 0.6], 0.2: [0.5, 0.5, 0.5]})
    frame["seconds"] = [1.0, 2.0, np.nan, 5.0, 5.0, 5.0]
    figure = drawn(tradeoff(frame, "seconds", METRIC))
    np.testing.assert_allclose(points(figure), [[1.5, 0.3], [5, 0.5]])
    assert "mean over 2 to 3 seeds" in texts(figure).replace("\n", " ")


def test_a_setting_of_which_a_seed_diverged_has_no_point():
    frame = seeds_of_rates({0.1: [0.2, 0.4], 0.2: [0.5, 0.5]})
    frame["outcome"] = ["diverged", *["finished"] * 3]
    figure = drawn(tradeoff(frame, "seconds", METRIC))
    there = [point for point in points(figure) if np.isfinite(point).all()]
    assert there == [[3.5, 0.5]]
    assert "left out: 1 that diverged" in texts(figure).replace("\n", " ")


def test_a_seed_that_diverged_in_one_metric_counts_as_such_in_both():
    frame = seeds_of_rates({0.1: [0.2, np.nan], 0.2: [0.5, 0.5]})
    figure = drawn(tradeoff(frame, "seconds", METRIC))
    assert [point for point in points(figure) if np.isfinite(point).all()] == [[3.5, 0.5]]
    assert "left out: 1 that diverged" in texts(figure).replace("\n", " ")
