"""A column of curves behaves as pandas' own columns do."""

import numpy as np
import pandas as pd
import pytest

from src.analysis.curves import Curve, CurveArray, at, best, last


def curve(*values: float) -> Curve:
    return Curve(np.array(values, dtype=float), np.arange(1, len(values) + 1) * 100)


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
    assert frame.loc["c", "loss"] is None


def test_curves_of_one_length_are_no_table():
    column = pd.Series(CurveArray.of([curve(1, 2), curve(3, 4)], "loss", "seen"))
    assert column.to_numpy().shape == (2,)
    assert column.map(lambda c: c.iloc[-1]).tolist() == [2.0, 4.0]
    assert column.apply(len).tolist() == [2, 2]
    assert column.astype(object).iloc[1].tolist() == [3.0, 4.0]


def test_pandas_idioms_keep_the_curves(frame):
    assert frame.query("lr < 0.15").index.tolist() == ["a", "c"]
    assert frame.sort_values("lr", ascending=False)["loss"].iloc[0].tolist() == []
    assert frame["loss"].isna().tolist() == [False, False, True, False]
    assert frame.dropna(subset="loss").index.tolist() == ["a", "b", "d"]
    assert frame[frame["loss"].notna()]["loss"].dtype == "curve"
    for _, group in frame.groupby("lr"):
        assert group["loss"].dtype == "curve"
    both = pd.concat([frame, frame.rename(index=str.upper)])
    assert both.loc["A", "loss"].name == "test/last/loss"
    wider = frame.reindex(["a", "x"])
    assert wider.loc["x", "loss"] is None
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
    lowest = best(frame["loss"], is_higher_better=False)
    np.testing.assert_equal(lowest.tolist(), [1.0, 5.0, np.nan, np.nan])
    highest = best(frame["loss"], is_higher_better=True)
    np.testing.assert_equal(highest.tolist(), [3.0, 5.0, np.nan, np.nan])
    assert highest.index.tolist() == list("abcd")
    for where, value in {99: np.nan, 100: 3.0, 199: 3.0, 200: 1.0, 10_000: 2.0}.items():
        np.testing.assert_equal(at(frame["loss"], where)["a"], value)
