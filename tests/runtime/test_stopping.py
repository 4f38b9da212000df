import math

import pytest

from src.metrics import metric_columns
from src.runtime.run_length import Best, has_diverged, loss_limit
from src.support.errors import UserError

COLUMNS = ["test/last/loss", "test/last/accuracy", "test/av/loss", "test/av/accuracy"]


def test_the_pattern_names_whole_columns():
    assert metric_columns("test/.*/accuracy", COLUMNS) == ["test/last/accuracy", "test/av/accuracy"]
    assert metric_columns("test/av/loss", COLUMNS) == ["test/av/loss"]


def test_a_part_of_a_name_will_do_where_one_column_has_it():
    columns = ["train/loss", "train/accuracy", "test/last/loss", "test/last/accuracy"]
    assert metric_columns("accuracy", columns) == ["test/last/accuracy"]
    assert metric_columns("train/.*", columns[1:]) == ["train/accuracy"]
    assert metric_columns("train/acc", columns) == ["train/accuracy"]
    with pytest.raises(UserError) as caught:
        metric_columns("accuracy", [*columns, "val/last/accuracy"])
    assert str(caught.value).endswith(": test/last/accuracy, val/last/accuracy")


@pytest.mark.parametrize("pattern", ["val/.*/accuracy", "accuracy", "test/.*"])
def test_a_pattern_that_names_nothing_or_contradicts_itself_is_refused(pattern):
    with pytest.raises(UserError, match="best_checkpoint_metric"):
        metric_columns(pattern, COLUMNS)


@pytest.mark.parametrize(
    ("column", "values", "best_epochs"),
    [
        ("test/last/accuracy", [0.5, 0.6, 0.6, 0.55, math.nan, 0.7], [1, 2, 6]),
        ("test/last/loss", [0.5, 0.6, 0.4, math.nan, 0.4, 0.3], [1, 3, 6]),
        ("test/last/accuracy", [math.nan, 0.1], [2]),
    ],
)
def test_accuracy_should_rise_and_loss_should_fall(column, values, best_epochs):
    best = Best([column], patience=None)
    assert [e for e, v in enumerate(values, 1) if best.update(e, {column: v})] == best_epochs


def test_the_best_of_several_columns_counts():
    best = Best(["test/last/accuracy", "test/av/accuracy"], None)
    assert best.update(1, {"test/last/accuracy": 0.1, "test/av/accuracy": 0.5})
    assert not best.update(2, {"test/last/accuracy": 0.4, "test/av/accuracy": 0.2})


def test_patience_counts_epochs_without_a_new_best():
    best = Best(["a/loss"], patience=2)
    reasons = []
    for epoch, loss in enumerate([3.0, 2.0, 2.5, 2.0], 1):
        best.update(epoch, {"a/loss": loss})
        reasons.append(best.reason_to_stop is not None)
    assert reasons == [False, False, False, True]
    assert "2 in epoch 2" in best.reason_to_stop


@pytest.mark.parametrize(
    ("loss", "diverged"), [(math.nan, True), (math.inf, True), (1e6, False), (1e6 + 1, True)]
)
def test_divergence(loss, diverged):
    assert has_diverged(loss, 1e6) is diverged


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_no_limit_allows_what_is_not_finite(loss):
    assert has_diverged(loss, math.inf)


@pytest.mark.parametrize(
    ("first_loss", "limit"),
    [(2.3, 1e6), (1e6, 1e6), (4e10, 4e11), (math.nan, 1e6), (math.inf, 1e6)],
)
def test_a_limit_that_nobody_gave_grows_with_the_first_loss(first_loss, limit, log_lines):
    assert loss_limit(first_loss, 1e6) == limit
    assert [("max_allowed_loss" in line) for line in log_lines] == [True] * (limit > 1e6)
