"""The best setting, pairs of the same seeds, and a table of settings."""

import warnings
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest

from src.analysis import choose, paired, read_experiments, table
from src.analysis.choice import ChoiceWarning
from src.analysis.curves import CurveArray
from src.support.errors import UserError
from train import run_experiment

VAL, TEST = "val/last/accuracy", "test/last/accuracy"
NOTHING = float("nan")


def frame(*runs: dict, **curves: Sequence) -> pd.DataFrame:
    """curves: val and test, of each run its values, or the only one."""
    df = pd.DataFrame(list(runs))
    for name, column in (("val", VAL), ("test", TEST), ("loss", "test/last/loss")):
        if name in curves:
            points = [np.atleast_1d(np.array(curve, dtype=float)) for curve in curves[name]]
            cells = [(values, np.arange(1, len(values) + 1)) for values in points]
            df[column] = CurveArray.of(cells, column, "epoch")
    return df


def runs(alg: Sequence[str] = ("sgd", "adamw"), seeds: int = 2, **more) -> list[dict]:
    """sgd of seed 0, sgd of seed 1, …"""
    return [
        {"optim_alg": name, "seed_model": seed, **more} for name in alg for seed in range(seeds)
    ]


@contextmanager
def warned(*words: str):
    """These warnings and no others, all of them at lines of this file."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    texts = [str(warning.message) for warning in found]
    assert all(w.category is ChoiceWarning and w.filename == __file__ for w in found), texts
    assert len(texts) == len(words), texts
    for text, word in zip(texts, words, strict=True):
        assert word in text


# ---- choose ------------------------------------------------------------------------------


def test_the_best_mean_of_validation_is_chosen_and_its_test_reported():
    df = frame(*runs(), val=[0.9, 0.5, 0.8, 0.7], test=[0.9, 0.9, 0.5, 0.75])
    with warned():
        chosen = choose(df)  # sgd has the best seed and the best test
    counts = ["num_seeds", "num_expected", "num_diverged"]
    assert list(chosen) == ["optim_alg", *counts, VAL, TEST, "std", "low", "high"]
    assert chosen["optim_alg"].tolist() == ["adamw"]
    assert chosen[[*counts, VAL, TEST]].to_numpy().tolist() == [[2, 2, 0, 0.75, 0.625]]
    ends = pytest.approx([0.25 / 2**0.5, 0.625 - 12.706 * 0.125, 0.625 + 12.706 * 0.125], abs=1e-4)
    assert chosen[["std", "low", "high"]].iloc[0].tolist() == ends


def test_ties_are_reported():
    df = frame(*runs(), val=[0.9, 0.7, 0.7, 0.9], test=[1, 2, 3, 4])
    with warned("2 settings are equally good, the first is shown: optim_alg=adamw; optim_alg=sgd"):
        assert choose(df)["optim_alg"].tolist() == ["adamw"]


def test_less_loss_is_better():
    df = frame(*runs(), loss=[0.5, 0.3, 0.2, 0.4], val=[1, 1, 0, 0])
    assert choose(df, "test/last/loss", VAL)["optim_alg"].tolist() == ["adamw"]


def test_a_choice_for_each_combination_in_order():
    small, large = ({"model": name} for name in ("tiny/lenet", "linear"))
    df = frame(*runs(**small), *runs(**large), val=[1, 1, 2, 2, 4, 4, 3, 3], test=range(8))
    with warned():
        chosen = choose(df, per=["model"])
    assert list(chosen)[:2] == ["model", "optim_alg"]
    assert chosen["model"].tolist() == ["linear", "tiny/lenet"]
    assert chosen["optim_alg"].tolist() == ["sgd", "adamw"]
    assert chosen[TEST].tolist() == [4.5, 2.5]
    pd.testing.assert_frame_equal(choose(df, per="model"), chosen)
    with pytest.raises(UserError, match="did you mean 'model'"):
        choose(df, per=["modle"])


def test_the_best_epoch_is_that_of_validation():
    val = [[0.1, 0.7, 0.6], [0.8, 0.2, 0.1]]
    df = frame(*runs(["sgd"]), val=val, test=[[0.9, 0.5, 0.8], [0.3, 0.9, 0.9]])
    with warned():
        chosen = choose(df, when="best")
    assert chosen[[VAL, TEST]].to_numpy().tolist() == [[0.75, 0.4]]
    df["seconds"] = 1.0
    assert choose(df, report="seconds", when="best")["seconds"].tolist() == [1.0]
    with pytest.raises(UserError, match="when: got 'best', expected 'last': seconds is no curve"):
        choose(df, "seconds", when="best")


@pytest.mark.parametrize("value", [NOTHING, -np.inf, []])
def test_a_setting_with_a_seed_without_value_wins_only_where_none_is_complete(value):
    df = frame(
        *runs(["sgd", "adamw", "adam"]), val=[value, 0.9, 0.1, 0.2, value, 0.8], test=[1] * 6
    )
    empty = f"2 of 6 runs have no finite {VAL}, diverged or failed; such settings come last: "
    missing = "seeds are missing: 2 of 3 settings have fewer than 2"
    with warned(empty + "optim_alg=adam; optim_alg=sgd", missing):
        assert choose(df)["optim_alg"].tolist() == ["adamw"]
    some = df[df["optim_alg"] != "adamw"]
    with warned("2 of 4 runs have no finite"):
        chosen = choose(some)
    assert chosen[["optim_alg", "num_seeds", VAL]].to_numpy().tolist() == [["sgd", 1, 0.9]]
    with warned("1 of 1 runs has no finite"):
        assert choose(df.iloc[:1])["num_seeds"].tolist() == [0]


def test_a_diverged_run_has_no_value_however_good_it_was_before():
    df = frame(*runs(), val=[[0.9, 0.9], [0.9, 0.9], 0.1, 0.2], test=[1] * 4)
    df["outcome"] = ["finished", "diverged", "finished", "early_stopped"]
    for when in ("last", "best", 1):
        with warned("1 of 4 runs has no finite", "seeds are missing"):
            assert choose(df, when=when)["optim_alg"].tolist() == ["adamw"]


@pytest.mark.parametrize("when", ["last", "best"])
def test_a_report_that_a_seed_lacks_is_not_the_mean_of_the_others(when):
    df = frame(*runs(["sgd"], 3), val=[1, 2, 3], test=[0.5, np.inf, 0.7])
    with warned():
        chosen = choose(df, when=when)
    assert chosen["num_seeds"].tolist() == [3]
    assert chosen[[TEST, "low", "high"]].isna().all(axis=None)


def test_a_run_on_its_way_is_reported():
    df = frame(*runs(), val=[1, 2, 3, 4], test=[1] * 4)
    df["state"] = ["done", "running", "failed", "done"]
    with warned(
        "1 of 4 runs has no finite", "1 of 3 runs is not done", "seeds are missing: 1 of 2"
    ):
        assert choose(df)["optim_alg"].tolist() == ["sgd"]  # of adamw one failed


def test_seeds_that_are_missing_or_there_twice_are_reported():
    df = frame(*runs(), val=[1, 2, 3, 5], test=[1, 2, 3, 5])
    with warned("1 of 2 settings has fewer than 2: optim_alg=sgd (1)"):
        choose(df.iloc[1:])  # not that of the winner
    with warned("1 run has the setting and the seeds of another one"):
        chosen = choose(pd.concat([df, df.iloc[3:]]))
    assert chosen[["num_seeds", TEST]].to_numpy().tolist() == [[2, 4]]


@pytest.mark.parametrize(
    ("by", "report", "when", "is_same"),
    [
        (TEST, TEST, "last", True),
        ("test/last/loss", TEST, "last", True),
        (TEST, TEST, "best", True),
        (VAL, TEST, "last", False),
        (VAL, TEST, "best", False),
        ("train/loss", "train/loss", "last", False),
        ("seconds", "seconds", "last", False),
    ],
)
def test_choosing_on_the_split_that_is_reported_is_reported(by, report, when, is_same):
    df = frame(*runs(), val=[1, 2, 3, 4], test=[1, 2, 3, 4], loss=[1, 2, 3, 4])
    df = df.assign(seconds=[1.0, 1, 2, 2]).assign(**{"train/loss": df["test/last/loss"]})
    with warned(*["reported on the same split: the figure is too good; evaluate a val"] * is_same):
        chosen = choose(df, by, report, when=when)
    assert list(chosen).count(report) == 1


def test_where_there_is_one_setting_only_its_best_epoch_is_a_choice():
    df = frame(*runs(["sgd"]), test=[[1, 2], [3, 4]])
    with warned():
        assert choose(df)[TEST].tolist() == [3]
    with warned(f"{TEST}: chosen and reported on the same split"):
        choose(df, when="best")


def test_mistakes_are_reported():
    df = frame(*runs(), test=[1, 2, 3, 4])
    with pytest.raises(UserError, match=f"unknown 'test/last/acuracy'; did you mean '{TEST}'"):
        choose(df, "test/last/acuracy")
    with pytest.raises(UserError, match=f"unknown 'test/last/acuracy'; did you mean '{TEST}'"):
        choose(df, report="test/last/acuracy", when="best")
    with pytest.raises(UserError, match="df: there are no runs in it"):
        choose(df.iloc[:0])


# ---- table -------------------------------------------------------------------------------


def test_a_row_a_setting_the_best_on_top():
    df = frame(*runs(["sgd", "adamw", "adam"]), test=[1, 2, 3, 5, NOTHING, 9], loss=range(6))
    with warned("1 of 6 runs has no finite", "seeds are missing"):
        found = table(df, [TEST, "test/last/loss"])
    assert found["optim_alg"].tolist() == ["adamw", "sgd", "adam"]
    assert found["num_seeds"].tolist() == [2, 2, 1]
    assert found[TEST].tolist() == [4, 1.5, 9]
    np.testing.assert_allclose(found[f"{TEST} std"], [2**0.5, 0.5**0.5, NOTHING])
    np.testing.assert_allclose(found[f"{TEST} low"], [4 - 12.7062, 1.5 - 6.3531, NOTHING], 1e-4)
    np.testing.assert_allclose(found[f"{TEST} high"], [4 + 12.7062, 1.5 + 6.3531, NOTHING], 1e-4)
    assert found["test/last/loss"].tolist() == [2.5, 0.5, 5]  # of the seeds that have an accuracy
    with warned():
        lowest = table(df, "test/last/loss")
    assert lowest["optim_alg"].tolist() == ["sgd", "adamw", "adam"]
    ends = ("", " std", " low", " high")
    assert list(lowest)[4:] == [f"test/last/loss{end}" for end in ends]


def test_a_setting_that_lacks_a_run_which_was_never_made_is_at_the_bottom():
    """As is one whose run failed."""
    df = frame(
        *runs(["sgd"], 2), *runs(["adamw"], 1), *runs(["adam"], 2), test=[0.9, 0.8, 0.95, 0.5, 0.6]
    )
    with warned("seeds are missing: 1 of 3 settings has fewer than 2: optim_alg=adamw (1)"):
        found = table(df)
    assert found["optim_alg"].tolist() == ["sgd", "adam", "adamw"]
    assert found[["num_seeds", "num_expected"]].to_numpy().tolist() == [[2, 2], [2, 2], [1, 2]]
    with warned(f"{TEST}: chosen and reported on the same split", "seeds are missing"):
        assert choose(df)["optim_alg"].tolist() == ["sgd"]


def test_a_setting_of_which_a_seed_diverged_is_there_with_its_counts():
    df = frame(*runs(["sgd", "adamw"], 3), test=[0.9, 0.8, 0.7, 0.9, 0.95, 0.99])
    df["outcome"] = ["finished"] * 5 + ["diverged"]
    with warned("1 of 6 runs has no finite", "seeds are missing"):
        found = table(df).set_index("optim_alg")
    assert found.index.tolist() == ["sgd", "adamw"]
    counts = ["num_seeds", "num_expected", "num_diverged"]
    assert found.loc["adamw", counts].tolist() == [2, 3, 1]
    assert found.loc["adamw", TEST] == pytest.approx(0.925)


def test_losses_that_mean_other_things_are_not_compared_in_silence():
    smoothed = [run | {"label_smoothing": s} for s in (0.0, 0.1) for run in runs(["sgd"])]
    df = frame(*smoothed, loss=[1, 2, 3, 4], test=[1, 2, 3, 4])
    words = "test/last/loss: runs differ in label_smoothing (0, 0.1): not comparable"
    with warned(words):
        table(df, "test/last/loss")
    with warned(words):
        table(df, [TEST, "test/last/loss"])
    with warned(f"{TEST}: chosen and reported"):
        choose(df, TEST, TEST)
    with warned("test/last/loss: chosen and reported", words):
        choose(df, "test/last/loss", "test/last/loss")
    with warned():  # within each nothing differs
        choose(df, "test/last/loss", "test/last/loss", per="label_smoothing")
    weighted = df.assign(label_smoothing=0.0, loss_class_weights=[None, None, [1, 2], [1, 2]])
    with warned("test/last/loss: runs differ in loss_class_weights (null, [1, 2])"):
        table(weighted, "test/last/loss")
    kinds = df.assign(label_smoothing=0.0, loss=["log", "log", "mse", "mse"])
    with warned("runs differ in loss (log, mse)"):
        table(kinds, "test/last/loss")


def test_runs_that_agree_in_seeds_and_keys_given_count_once():
    df = frame(*runs(batch_size=32), *runs(batch_size=64), test=[1, 2, 3, 4, 5, 6, 7, 8])
    with warned("4 runs have the setting and the seeds of another one"):
        found = table(df, keys=["optim_alg"])
    assert found[["num_seeds", TEST]].to_numpy().tolist() == [[2, 5.5], [2, 3.5]]
    with pytest.raises(UserError, match="did you mean 'optim_alg'"):
        table(df, keys=["optimalg"])


def test_a_failed_run_that_was_repeated_counts_by_the_repetition():
    df = frame(*runs(), *runs(["sgd"], 1), test=[NOTHING, 0.8, 0.6, 0.6, 0.9])
    with warned("1 of 5 runs has no finite"):
        found = table(df, keys="optim_alg").set_index("optim_alg")
    assert found.loc["sgd", ["num_seeds", TEST]].tolist() == [2, pytest.approx(0.85)]


def test_many_settings_have_the_intervals_that_each_has_alone():
    values = np.random.default_rng(0).normal(size=(400, 4))
    settings = [
        run | {"base_lr": rate} for rate in range(400) for run in runs(["sgd"], 4 - rate % 2)
    ]
    ends = [value for rate, row in enumerate(values) for value in row[: 4 - rate % 2]]
    df = frame(*settings, test=ends)
    with warned("seeds are missing: 200 of 400"):
        found = table(df).set_index("base_lr")
    for rate in (0, 1, 398, 399):
        alone = table(df[df["base_lr"] == rate]).iloc[0].drop("num_expected")
        assert found.loc[rate].drop("num_expected").tolist() == pytest.approx(alone.tolist())


def test_real_runs(digits, tmp_path):
    splits = {"train": "train[:90%]", "val": "train[90%:]", "test": "test"}
    for rate in (0.1, 1e-6):
        for seed in (1, 2):
            folder = str(tmp_path / "x" / f"{rate}-{seed}")
            run_experiment(
                digits(base_lr=rate, seed_model=seed, data_splits_map=splits, output_dir=folder)
            )
    df = read_experiments(tmp_path / "x")
    with warned():
        chosen = choose(df).iloc[0]
    ends = [curve.iloc[-1] for curve in df[df["base_lr"] == 0.1][TEST]]
    assert (chosen["base_lr"], chosen["num_seeds"]) == (0.1, 2)
    assert chosen[TEST] == np.mean(ends)
    assert chosen["low"] < min(ends) < max(ends) < chosen["high"]
    found = paired(df[df["base_lr"] == 0.1], df[df["base_lr"] == 1e-6])
    assert (found.num_pairs, found.num_better) == (2, 2)
    assert found.differing == {"base_lr": (0.1, 1e-6)}


# ---- paired ------------------------------------------------------------------------------


def test_runs_of_the_same_seed_are_compared():
    a = frame(*runs(["sgd"], 3, base_lr=0.1), test=[0.9, 0.8, 0.7])
    b = frame(*runs(["adamw"], 3, base_lr=0.001), test=[0.4, 0.8, 0.8])[::-1]
    with warned():
        found = paired(a, b)
    assert (found.metric, found.num_pairs, found.num_better, found.num_equal) == (TEST, 3, 1, 1)
    assert (found.mean_a, found.mean_b) == pytest.approx((0.8, 2 / 3))
    expected = (0.4 / 3, -0.6652, 0.9319)  # 4.303 · 0.3215 / √3 on each side
    assert (found.difference, found.low, found.high) == pytest.approx(expected, abs=1e-4)
    assert found.differing == {"optim_alg": ("sgd", "adamw"), "base_lr": (0.1, 0.001)}
    swapped = paired(b, a)
    assert (swapped.num_better, swapped.difference) == (1, pytest.approx(-0.4 / 3))


def test_of_losses_the_smaller_one_is_better():
    a, b = (frame(*runs(alg, 3), loss=loss) for alg, loss in ((["a"], [1, 1, 3]), (["b"], [2] * 3)))
    assert paired(a, b, "test/last/loss").num_better == 2


def test_partners_agree_in_all_that_varies_within():
    """Seeds and models; the length goes with the model, and the optimizer is compared."""
    a, b = (
        frame(
            *runs([alg], model="linear", train_length=20),
            *runs([alg], model="tiny/lenet", train_length=5),
            test=test,
        )
        for alg, test in (("sgd", [1, 2, 3, 4]), ("adamw", [5, 5, 5, 5]))
    )
    with warned():
        found = paired(a, b.sample(frac=1, random_state=0))
    assert (found.num_pairs, found.difference) == (4, -2.5)
    assert found.differing == {"optim_alg": ("sgd", "adamw")}
    with warned("left out: 2 of the 4 runs of a and 0 of the 2 runs of b have no partner"):
        found = paired(a, b[b["model"] == "linear"])
    assert (found.num_pairs, found.mean_a) == (2, 1.5)
    assert found.differing == {"optim_alg": ("sgd", "adamw")}


def test_a_key_that_one_side_does_not_have_is_null_there():
    a, b = frame(*runs(["sgd"]), test=[1, 2]), frame(*runs(["sgd"], mine=[7]), test=[1, 1])
    assert str(paired(a, b).differing) == "{'mine': (nan, [7])}"


def test_pairs_without_both_values_are_left_out():
    a = frame(*runs(["sgd"], 4), test=[0.5, NOTHING, 0.7, 0.8])
    b = frame(*runs(["adamw"], 5), test=[0.4, 0.1, 0.5, [], 0.5])
    with warned("and 1 of the 5 runs of b have no partner, 2 of 4 pairs lack a value"):
        found = paired(a, b)
    assert (found.num_pairs, found.mean_a, found.mean_b) == (2, 0.6, 0.45)
    with pytest.raises(UserError, match=f"{TEST}: in none of 1 pairs do both runs have a value"):
        paired(a.iloc[1:2], b)


@pytest.mark.parametrize(
    ("rate", "seeds", "words"),
    [
        (0.2, 2, "no run of a has a partner in b: base_lr is 0.1, 0.3 in a, 0.2, 0.4 in b$"),
        (
            0.1,
            1,
            "in b: seed_model is 0, 1 in a, 5 in b; where seed_model stands in the job file, ",
        ),
    ],
)
def test_where_there_are_no_pairs_the_error_says_why(rate, seeds, words):
    a = frame(*runs(base_lr=0.1), *runs(base_lr=0.3), test=range(8))
    b = frame(*runs(base_lr=rate), *runs(base_lr=rate + 0.2), test=range(8))
    b = b if seeds == 2 else b.assign(seed_model=5).drop_duplicates(["optim_alg", "base_lr"])
    with pytest.raises(UserError, match=words):
        paired(a, b)


def test_several_partners_and_none_at_all_are_refused():
    a = frame(*runs(), test=range(4))
    with pytest.raises(UserError, match=r"b: 2 runs with optim_alg=sgd seed_model=0; select one"):
        paired(a, pd.concat([a, a.iloc[:1]]))
    with pytest.raises(UserError, match="a: there are no runs in it"):
        paired(a.iloc[:0], a)


def test_a_comparison_is_read_at_a_glance():
    a = frame(*runs(["sgd"], base_lr=0.1), test=[0.96, 0.97])
    b = frame(*runs(["adamw"], base_lr=0.001), test=[0.95, 0.94])
    for text in (str(paired(a, b)), repr(paired(a, b))):
        assert text == (
            f"{TEST}: 0.965 against 0.945, +0.020 [-0.107, +0.147] (95 %)\n"
            "2 pairs of the same seeds: 2 better, 0 equal; optim_alg=sgd against adamw, …"
        )
    assert max(map(len, text.splitlines())) <= 80
    one = str(paired(a.iloc[:1], b.iloc[:1].assign(optim_alg="sgd")))
    assert one == (
        f"{TEST}: 0.9600 against 0.9500, +0.0100\n"
        "1 pair of the same seeds: 1 better, 0 equal; base_lr=0.1 against 0.001"
    )
    assert str(paired(a, a)) == (
        f"{TEST}: 0.9650 against 0.9650, +0.0000\n"
        "2 pairs of the same seeds: 0 better, 2 equal; no key differs"
    )
