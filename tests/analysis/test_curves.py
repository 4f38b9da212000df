"""A column of curves behaves as pandas' own columns do."""

import numpy as np
import pandas as pd
import pytest

from src.analysis.curves import CurveArray, aligned, at, at_best, best, last, main_metrics, numbers
from src.support.errors import UserError


def curve(*values: float) -> tuple[np.ndarray, np.ndarray]:
    return np.array(values, dtype=float), np.arange(1, len(values) + 1) * 100


@pytest.fixture
def frame() -> pd.DataFrame:
    curves = [curve(3, 1, 2), curve(5, np.nan), None, curve()]
    column = CurveArray.of(curves, "test/last/loss", "seen")
    return pd.DataFrame({"lr": [0.1, 0.2, 0.1, 0.4], "loss": column}, index=list("abcd"))


def test_a_cell_is_a_series(frame):
    expected = pd.Series(
        [3.0, 1.0, 2.0], index=pd.Index([100, 200, 300], name="seen"), name="test/last/loss"
    )
    for cell in (
        frame.loc["a", "loss"],
        frame["loss"].iloc[0],
        next(iter(frame["loss"])),
        frame.iloc[0]["loss"],
        frame.to_dict("records")[0]["loss"],
    ):
        pd.testing.assert_series_equal(cell, expected)
    missing = frame.loc["c", "loss"]
    assert (len(missing), missing.name, missing.index.name) == (0, "test/last/loss", "seen")
    assert missing.dtype == expected.dtype


def test_curves_of_one_length_are_no_table():
    column = pd.Series(CurveArray.of([curve(1, 2), curve(3, 4)], "loss", "seen"))
    assert column.to_numpy().shape == (2,)
    assert column.map(lambda c: c.iloc[-1]).tolist() == [2.0, 4.0]
    assert column.apply(len).tolist() == [2, 2]
    assert column.astype(object).iloc[1].tolist() == [3.0, 4.0]


def test_pandas_idioms_keep_the_curves(frame):
    assert frame.query("lr < 0.15").index.tolist() == ["a", "c"]
    assert frame.sort_values("lr", ascending=False)["loss"].iloc[0].tolist() == []
    assert frame["loss"].isna().tolist() == [False, False, True, True]
    assert frame.dropna(subset="loss").index.tolist() == ["a", "b"]
    assert frame["loss"].map(len).tolist() == [3, 2, 0, 0]
    assert frame[frame["loss"].notna()]["loss"].dtype == "curve"
    for _, group in frame.groupby("lr"):
        assert group["loss"].dtype == "curve"
    both = pd.concat([frame, frame.rename(index=str.upper)])
    assert both.loc["A", "loss"].name == "test/last/loss"
    wider = frame.reindex(["a", "x"])
    assert wider.loc["x", "loss"].tolist() == []
    equal = frame["loss"].array == frame.copy()["loss"].array
    assert equal.tolist() == [True, True, False, False]
    assert not (frame["loss"].array == frame["loss"].array[[1, 0, 2, 2]]).any()
    assert frame.copy()["loss"].iloc[1].index.tolist() == [100, 200]
    joined = frame.merge(pd.DataFrame({"lr": [0.1], "name": ["small"]}), on="lr")
    assert joined["loss"].iloc[0].tolist() == [3, 1, 2]


def test_a_table_shows_what_curves_reach(frame):
    text = repr(frame)
    assert "3 points to 2" in text
    assert "array" not in text


def test_numbers_from_curves(frame):
    np.testing.assert_equal(last(frame["loss"]).tolist(), [2.0, np.nan, np.nan, np.nan])
    np.testing.assert_equal(last(frame["loss"], k=2).tolist()[0], 1.5)
    lowest = best(frame["loss"])
    np.testing.assert_equal(lowest.tolist(), [1.0, 5.0, np.nan, np.nan])
    highest = best(frame["loss"].rename("test/last/accuracy"))
    np.testing.assert_equal(highest.tolist(), [3.0, 5.0, np.nan, np.nan])
    assert highest.index.tolist() == list("abcd")
    for where, value in {99: np.nan, 100: 3.0, 199: 3.0, 200: 1.0, 10_000: 2.0}.items():
        np.testing.assert_equal(at(frame["loss"], where)["a"], value)


def test_the_value_where_another_curve_is_best():
    val = CurveArray.of(
        [curve(0.1, 0.9, 0.9), curve(np.nan, 0.2), None, curve(1)], "val/accuracy", "s"
    )
    test = CurveArray.of([curve(7, 8, 9), curve(5, 6), curve(1), None], "test/accuracy", "s")
    found = at_best(pd.Series(test, name="test/accuracy"), pd.Series(val, name="val/accuracy"))
    np.testing.assert_equal(found.tolist(), [8.0, 6.0, np.nan, np.nan])


def test_numbers_by_name(frame):
    frame["seconds"] = [1, 2, 3, 4]
    np.testing.assert_equal(numbers(frame, "loss").tolist(), [2.0, np.nan, np.nan, np.nan])
    np.testing.assert_equal(numbers(frame, "loss", "last 2")["a"], 1.5)
    np.testing.assert_equal(numbers(frame, "loss", "best")["b"], 5.0)
    np.testing.assert_equal(numbers(frame, "loss", 200)["a"], 1.0)
    assert numbers(frame, "seconds").tolist() == [1, 2, 3, 4]
    with pytest.raises(UserError, match="when: got 'first', expected 'last', 'last 5', 'best'"):
        numbers(frame, "loss", "first")
    with pytest.raises(UserError, match="unknown 'los'; did you mean 'loss'"):
        numbers(frame, "los")
    frame["model"] = "linear"
    with pytest.raises(UserError, match="model holds no numbers"):
        numbers(frame, "model")
    with pytest.raises(UserError, match="which way is better"):
        numbers(
            frame.rename(columns={"loss": "train/learning_rate"}), "train/learning_rate", "best"
        )


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["test/av/accuracy", "test/last/loss", "test/last/accuracy"], ["test/last/accuracy"] * 2),
        (["test/last/accuracy", "val/last/accuracy"], ["val/last/accuracy", "test/last/accuracy"]),
        (["train/loss", "val/last/loss"], ["val/last/loss"] * 2),
        (["test/last/accuracy", "test/last/perplexity"], ["test/last/perplexity"] * 2),
        (
            ["holdout/last/accuracy", "ood/last/accuracy", "test/last/accuracy"],
            ["holdout/last/accuracy", "test/last/accuracy"],
        ),
        (["a/last/loss", "b/last/loss"], ["a/last/loss", "b/last/loss"]),
        (["val/last/loss", "test/last/accuracy"], ["val/last/loss", "test/last/accuracy"]),
    ],
)
def test_the_metrics_that_matter(columns, expected):
    arrays = {name: CurveArray.of([curve(1)], name, "epoch") for name in columns}
    assert list(main_metrics(pd.DataFrame(arrays))) == expected


def test_without_an_evaluation_there_is_no_metric():
    with pytest.raises(UserError, match=r"metric: neither .*; there are train/loss"):
        main_metrics(pd.DataFrame({"train/loss": CurveArray.of([curve(1)], "l", "e")}))


def test_aligned_curves_share_an_index():
    a, b = (np.array([1.0, 3.0]), np.array([0, 2])), (np.array([5.0, 7.0]), np.array([1, 3]))
    array = CurveArray.of([a, None, b, curve()], "loss", "time")
    index, values = aligned(pd.Series(array))
    assert index.tolist() == [0, 1, 2, 3]
    np.testing.assert_equal(values, [[1, 2, 3, np.nan], [np.nan, 5, 6, 7]])
    same, values = aligned(pd.Series(CurveArray.of([a, a], "loss", "time")))
    assert (same.tolist(), values.tolist()) == ([0, 2], [[1, 3], [1, 3]])
    assert aligned(pd.Series(CurveArray.of([None], "loss", "time")))[1].shape == (0, 0)


def test_cells_are_set_without_touching_other_frames(frame):
    copy = frame.copy()
    copy.loc["a", "loss"] = None
    copy.at["c", "loss"] = frame.loc["b", "loss"]
    assert copy["loss"].isna().tolist() == [True, False, False, True]
    assert copy.loc["c", "loss"].index.tolist() == [100, 200]
    assert frame["loss"].isna().tolist() == [False, False, True, True]
    kept = frame["loss"].where(frame["lr"] < 0.3)
    assert kept.isna().tolist() == [False, False, True, True]
    frame.loc[["b", "d"], "loss"] = frame.loc[["a", "c"], "loss"].to_numpy()
    assert frame.loc["b", "loss"].tolist() == [3, 1, 2]
    assert frame["loss"].isna().tolist() == [False, False, True, True]


def test_frames_with_and_without_a_column_are_joined(frame):
    both = pd.concat([frame, frame.drop(columns="loss")])
    assert both["loss"].dtype == "curve"
    assert both["loss"].isna().tolist() == [False, False] + [True] * 6
    assert len(CurveArray.of([], "loss", "seen")) == 0


def test_equal_curves_are_duplicates_and_curves_have_no_order(frame):
    frame.at["d", "loss"] = frame.loc["a", "loss"]
    assert frame.duplicated("loss").tolist() == [False, False, False, True]
    assert frame.drop_duplicates("loss").index.tolist() == ["a", "b", "c"]
    frame.at["d", "loss"] = frame.loc["a", "loss"] + [1, 0, 0]  # the same end
    assert frame.drop_duplicates("loss").index.tolist() == ["a", "b", "c", "d"]
    with pytest.raises(UserError, match="curves have no order"):
        frame.sort_values("loss")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda df: last(df["loss"], 0), "k: got 0, expected a number of values from 1 up"),
        (lambda df: numbers(df, "loss", "last 0"), "k: got 0"),
        (lambda df: at(df["loss"], "x"), "where: got 'x', expected a point"),
        (lambda df: last(df["lr"]), "lr: no column of curves"),
        (lambda df: last(df["timestamp"]), "timestamp: no column of curves of numbers"),
    ],
)
def test_mistakes_are_reported(frame, call, words):
    texts = [(np.array(["x"]), np.array([1]))] * 4
    frame["timestamp"] = CurveArray.of(texts, "timestamp", "epoch")
    with pytest.raises(UserError, match=words):
        call(frame)


def test_points_of_numpy_are_points(frame):
    assert numbers(frame, "loss", np.int64(200))["a"] == 1.0


# ---- Arithmetic --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: a - 0.5,
        lambda a, b: 2 / a,
        lambda a, b: -a,
        lambda a, b: abs(a - 4),
        lambda a, b: a**2 % 3,
        lambda a, b: a > 1,
        lambda a, b: np.log(a),
        lambda a, b: np.maximum(a, 2),
        lambda a, b: a - b,
        lambda a, b: (b - a) / b,
        lambda a, b: np.hypot(a, b),
    ],
)
def test_arithmetic_is_that_of_each_curve(frame, call):
    """Also where a column is a part of another one, and where the curves' indices differ."""
    frame["other"] = CurveArray.of(
        [curve(1, 2, 4), curve(8, 2), curve(1), curve()], "test/av/loss", "seen"
    )
    shorter = frame.assign(other=CurveArray.of([curve(1, 2), curve(8)] * 2, "x", "seen"))
    for df in (frame, frame.iloc[[1, 0]], frame.query("lr == 0.1"), shorter, frame.iloc[:0]):
        found = call(df["loss"], df["other"])
        assert found.dtype == "curve"
        assert found.index.tolist() == df.index.tolist()
        for name in df.index.difference(["c", "d"]):
            expected = call(df.loc[name, "loss"], df.loc[name, "other"])
            pd.testing.assert_series_equal(found[name], expected, check_names=False)
            assert found[name].index.name == "seen"
        for name in df.index.intersection(["c", "d"]):
            assert len(found[name]) == 0


def test_a_number_a_run_is_taken_from_its_own_curve(frame):
    lowest = best(frame["loss"].rename("test/last/loss"))
    for numbers_of_runs in (lowest, lowest.astype("Float64")):
        gap = frame["loss"] - numbers_of_runs
        assert gap["a"].to_dict() == {100: 2.0, 200: 0.0, 300: 1.0}
        assert gap.isna().tolist() == [False, False, True, True]
        assert (numbers_of_runs - frame["loss"])["a"].tolist() == [-2.0, 0.0, -1.0]
    backwards = frame["loss"] - lowest[::-1]  # matched by name
    assert backwards["a"].tolist() == [2.0, 0.0, 1.0]
    seeds = pd.Series([1, None, 3, 4], index=frame.index, dtype="Int64")
    assert (frame["loss"] * seeds)["a"].tolist() == [3.0, 1.0, 2.0]
    assert (frame["loss"] * seeds)["b"].isna().all()
    with pytest.raises(ValueError, match="2 numbers"):
        frame["loss"].array - np.array([1.0, 2.0])


def test_what_arithmetic_gives_is_a_column_as_any(frame):
    frame["gap"] = frame["loss"] - 1
    np.testing.assert_equal(last(frame["gap"]).tolist(), [1.0, np.nan, np.nan, np.nan])
    np.testing.assert_equal(best(frame["gap"].rename("gap/loss")).tolist()[:2], [0.0, 4.0])
    assert last(frame["loss"] > 1).tolist()[0] == 1.0
    assert frame.loc["a", "loss"].tolist() == [3, 1, 2]  # as it was
    frame["gap"] /= 2
    assert frame.loc["a", "gap"].tolist() == [1, 0, 0.5]
    both = frame[["loss", "gap"]] + 1
    assert both.loc["a", "gap"].tolist() == [2, 1, 1.5]
    moved = frame[["loss", "gap"]].sub(best(frame["loss"].rename("x/loss")), axis=0)
    assert moved.loc["a", "loss"].tolist() == [2, 0, 1]
    with pytest.raises(TypeError):
        frame["loss"] - "x"
    with pytest.raises(TypeError):
        np.add.reduce(frame["loss"].array)
