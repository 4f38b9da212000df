"""Settings and seeds, and the rows that select() finds."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from src.analysis import between, select, table, varying
from src.analysis.choice import ChoiceWarning
from src.analysis.curves import CurveArray
from src.analysis.settings import format_setting, format_value, groups, mean_interval
from src.support.errors import UserError


@pytest.fixture
def frame() -> pd.DataFrame:
    """Two models, each with its length; two learning rates; two seeds."""
    rows = [
        {
            "state": "done" if seed else "running",
            "output_dir": f"results/{model}{rate}{seed}",
            "seed_model": seed,
            "train_length": length,
            "model": model,
            "base_lr": rate,
            "data_n_examples": {"train": length},
            "momentum": 0.9,
        }
        for length, model in ((5, "tiny/lenet"), (20, "linear"))
        for rate in (0.5, 0.25)
        for seed in (1, 2)
    ]
    return pd.DataFrame(rows)


def test_varying_keys_leave_out_seeds_and_what_is_found_or_goes_with_another(frame):
    assert varying(frame) == ["model", "base_lr"]
    assert varying(frame.iloc[:4]) == ["base_lr"]
    assert varying(frame.iloc[:1]) == varying(frame.iloc[:0]) == []
    frame["train_length"] = [5, 5, 5, 5, 20, 20, 5, 5]
    assert varying(frame) == ["train_length", "model", "base_lr"]


def test_null_lists_and_mappings_are_values(frame):
    frame["averaging"] = [None, "ema"] * 4
    frame["optim_args"] = [{"a": [1]}, {"a": [1]}, {"a": [2]}, {}] * 2
    frame["eval_batch_size"] = [np.nan, 8.0] * 4
    assert varying(frame) == ["model", "base_lr", "averaging", "optim_args"]
    found = groups(frame, ["optim_args", "eval_batch_size"])
    assert [len(rows) for _, rows in found] == [2, 2, 2, 2]
    assert {str(values["optim_args"]) for values, _ in found} == {"{'a': [1]}", "{'a': [2]}", "{}"}


def test_whole_numbers_and_floats_are_the_same_and_true_is_not_one():
    mixed = pd.DataFrame({"momentum": pd.Series([1, 1.0, True], dtype=object)})
    assert [len(rows) for _, rows in groups(mixed, ["momentum"])] == [2, 1]


def test_groups_are_ordered_by_their_values(frame):
    frame["batch_size"] = [128, 32, 1024, 32] * 2
    found = groups(frame, ["model", "batch_size"])
    assert [tuple(values.values()) for values, _ in found] == [
        ("linear", 32),
        ("linear", 128),
        ("linear", 1024),
        ("tiny/lenet", 32),
        ("tiny/lenet", 128),
        ("tiny/lenet", 1024),
    ]
    for values, rows in found:
        assert (rows["model"] == values["model"]).all()
        assert (rows["batch_size"] == values["batch_size"]).all()
    assert [values for values, _ in groups(frame, [])] == [{}]
    with pytest.raises(UserError, match="did you mean 'batch_size'"):
        groups(frame, ["batchsize"])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (range(8), []),
        (range(1, 8), ["seeds are missing: 1 of 4 settings has fewer than 2: "]),
        ([*range(8), 0, 1], ["2 runs have the setting and the seeds of another one"]),
    ],
)
def test_missing_and_doubled_seeds_are_warned_of(frame, rows, expected):
    frame["test/last/accuracy"] = 0.5
    runs = frame.assign(state="done").iloc[list(rows)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ChoiceWarning)
        table(runs, "test/last/accuracy")
    which = "model=tiny/lenet base_lr=0.5 (1)" * (len(rows) < 8)
    assert [str(one.message) for one in caught] == [text + which for text in expected]


def test_labels_are_short():
    assert format_setting({"base_lr": 0.1 + 0.2, "averaging": None}) == "base_lr=0.3 averaging=null"
    shown = [format_value(value) for value in (12345, 12345.6, np.int64(7))]
    assert shown == ["12345", "1.235e+04", "7"]
    assert format_value(True) == "true"
    assert len(format_value("x" * 99)) == 30


def test_what_was_measured_is_no_setting_even_after_a_merge(frame):
    frame = frame.assign(batch="x", accuracy=np.linspace(0, 1, 8))
    frame.attrs["keys"] = ["model", "base_lr"]
    nodes = pd.DataFrame({"base_lr": [0.5, 0.25], "cluster": ["a", "b"]})
    merged = frame.merge(nodes, on="base_lr")
    assert varying(merged) == ["model", "base_lr"]


def test_types_of_pandas_own_have_nulls_too(frame):
    frame["eval_batch_size"] = [None, 8] * 4
    converted = frame.convert_dtypes()
    assert varying(converted) == ["model", "base_lr", "eval_batch_size"]
    found = groups(converted, ["eval_batch_size", "model"])
    assert [format_setting(values) for values, _ in found][:2] == [
        "eval_batch_size=null model=linear",
        "eval_batch_size=null model=tiny/lenet",
    ]


def test_curves_make_no_groups(frame):
    frame["loss"] = CurveArray.of([None] * 8, "loss", "epoch")
    with pytest.raises(UserError, match="key: got 'loss', expected a column of the config"):
        groups(frame, ["loss"])


# ---- select ------------------------------------------------------------------------------


@pytest.fixture
def df() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": ["linear", "tiny/lenet", "tiny/vgg", "linear/no_bias", "tinyish"],
            "base_lr": [1e-4, 1e-3, 0.05, 0.1, 2.0],
            "averaging": [None, "ema_0.99", ["ema", "poly"], None, "ema"],
            "early_stopping_patience": [None, 1, 2, None, 3],
            "model_pretrained": [True, False, False, True, False],
            "batch_size": [1, 1, 2, 2, 3],
        },
        index=list("abcde"),
    )


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ({"model": "tiny"}, "bc"),
        ({"model": "linear"}, "ad"),
        ({"model": "linear/no_bias"}, "d"),
        ({"model": ["tiny/vgg", "linear/no_bias"]}, "cd"),
        ({"base_lr": between(1e-3, 0.1)}, "bcd"),
        ({"base_lr": 0.05}, "c"),
        ({"base_lr": 0.1 * 0.5 + 1e-17}, "c"),
        ({"batch_size": range(1, 2)}, "ab"),
        ({"averaging": None}, "ad"),
        ({"early_stopping_patience": None}, "ad"),
        ({"averaging": [None, "ema"]}, "ade"),
        ({"model_pretrained": True}, "ad"),
        ({"batch_size": 1}, "ab"),  # which True equals in Python
        ({"batch_size": True}, ""),
        ({"batch_size": lambda size: size > 1, "model": "tiny"}, "c"),
        ({"base_lr": between(5, 6)}, ""),
        ({"base_lr": 2.0, "model": "tiny"}, ""),  # though such models there are
        ({}, "abcde"),
    ],
)
def test_rows_are_chosen_by_their_keys(df, wanted, rows):
    assert select(df, **wanted).index.tolist() == list(rows)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"modle": "tiny"}, r"select: unknown 'modle'; did you mean 'model'\?"),
        ({"base_lr": "0.1"}, r"base_lr: got '0.1', expected one of 0\.0"),
        ({"model": "tiny/lenett"}, r"model: got 'tiny/lenett', expected one of linear, .*'tiny/le"),
    ],
)
def test_names_that_nothing_has_are_refused(df, wanted, words):
    with pytest.raises(UserError, match=words):
        select(df, **wanted)


# ---- Intervals of means over seeds -------------------------------------------------------


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_an_interval_covers_the_mean_as_often_as_it_says(num_seeds):
    """Of 20,000 experiments; the standard error of the share is 0.15 %."""
    draws = np.random.default_rng(num_seeds).normal(3.0, 2.0, size=(num_seeds, 20_000))
    mean, low, high = mean_interval(draws)
    np.testing.assert_allclose(mean, draws.mean(axis=0))
    covered = ((low < 3.0) & (high > 3.0)).mean()
    assert 0.94 < covered < 0.96


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_it_covers_accuracies_as_well(num_seeds):
    """Shares of 2,000 examples that are right, of networks that differ by their seeds."""
    rng = np.random.default_rng(num_seeds)
    skill = rng.beta(95, 5, size=(num_seeds, 20_000))  # skewed: 0.95, rarely 0.9
    _, low, high = mean_interval(rng.binomial(2000, skill) / 2000)
    assert ((low < 0.95) & (high > 0.95)).mean() > 0.93


def test_it_is_that_of_scipy():
    values = np.array([[0.2, 1.0], [0.5, 1.1], [0.9, 1.3], [0.4, 0.9]])
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    _, low, high = mean_interval(values)
    np.testing.assert_allclose([low, high], [expected.low, expected.high])


def test_one_seed_has_a_mean_and_no_interval():
    mean, low, high = mean_interval(np.array([[1.0, 2.0]]))
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan([low, high]).all()
    assert np.isnan(mean_interval(np.zeros((0, 2)))).all()


@pytest.mark.parametrize("num_seeds", [2, 3, 7])
def test_values_that_are_all_equal_have_no_interval(num_seeds):
    """One without width would say that the mean is known."""
    mean, low, high = mean_interval(np.full((num_seeds, 2), 0.1))
    np.testing.assert_allclose(mean, [0.1, 0.1])
    assert np.isnan([low, high]).all()


def test_a_nan_spoils_its_own_point_alone():
    mean, low, high = mean_interval(np.array([[1.0, np.nan], [2.0, 1.0]]))
    assert np.isnan([mean[1], low[1], high[1]]).all()
    assert (mean[0], low[0], high[0]) == pytest.approx((1.5, 1.5 - 6.353, 1.5 + 6.353), abs=1e-3)
