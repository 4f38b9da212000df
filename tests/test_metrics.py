"""What is measured: numbers and arrays by name, from a step to stats.csv and its arrays."""

import math
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch import nn

import train
from src.logging.records import Stats
from src.losses import build_loss
from src.metrics import DIRECTIONS, class_accuracy, metric_columns, top5_accuracy
from src.runtime import session
from src.runtime.evaluation import Metrics
from src.support.errors import UserError
from tests.whole_runs import end_of, run_through
from train import run_experiment

CPU = torch.device("cpu")


@pytest.fixture
def recording(monkeypatch):
    """recording(step): step(run, learner, metrics) records something after each train_step."""

    def by(record) -> None:
        step = train.train_step

        def both(run, learner, inputs, targets, metrics):
            step(run, learner, inputs, targets, metrics)
            record(run, learner, metrics)

        monkeypatch.setattr(train, "train_step", both)

    return by


def norms(run, learner, metrics):
    weight = learner.model.weight
    metrics.add(norm=weight.norm(), is_odd=run.step % 2, classes=weight.norm(dim=1))
    metrics.add(weight=run.step, late=float(run.step))


# ---- In a step ---------------------------------------------------------------------------


def test_what_a_step_records_is_a_column_a_figure_in_the_log_and_a_curve(
    digits, tmp_path, recording, log_lines
):
    recording(norms)
    stats = run_experiment(digits(save_plot=True, log_interval=5))
    assert stats["train/is_odd"].tolist() == [7 / 15, 8 / 15]
    later = range(15, 30)
    assert stats["train/late"].iloc[1] == pytest.approx(sum(t * t for t in later) / sum(later))
    read = pd.read_csv(tmp_path / "run" / "stats.csv", index_col=0)
    assert read["train/norm"].tolist() == stats["train/norm"].tolist()
    assert Stats.read_arrays(tmp_path / "run")["train/classes"].shape == (2, 64)
    assert sum("| norm " in line and "examples/s" in line for line in log_lines) == 6
    assert (tmp_path / "run" / "curves.png").exists()


def test_recording_changes_nothing_else(digits, tmp_path, recording):
    plain = digits(output_dir=str(tmp_path / "plain"))
    run_experiment(plain)
    recording(norms)
    run_experiment(digits(output_dir=str(tmp_path / "recorded")))
    stats = [pd.read_csv(tmp_path / n / "stats.csv", index_col=0) for n in ("plain", "recorded")]
    assert list(stats[0]) == [
        c for c in stats[1] if c not in ("train/norm", "train/is_odd", "train/late")
    ]
    assert stats[0]["test/last/loss"].tolist() == stats[1]["test/last/loss"].tolist()


def test_killed_in_the_middle_of_an_epoch_the_means_are_those_of_the_straight_run(
    digits, tmp_path, recording, interrupt
):
    recording(norms)
    keys = {"metrics": ["class_accuracy", "top5_accuracy"], "train_length": 3}
    straight = digits(output_dir=str(tmp_path / "straight"), **keys)
    run_experiment(straight)
    interrupt(4, 22, 40)
    killed = digits(output_dir=str(tmp_path / "killed"), **keys)
    assert run_through(killed) == 4
    assert end_of(killed) == end_of(straight)
    arrays, expected = (
        Stats.read_arrays(tmp_path / "killed"),
        Stats.read_arrays(tmp_path / "straight"),
    )
    assert sorted(arrays) == ["test/last/class_accuracy", "train/classes"]
    for column, values in expected.items():
        assert np.array_equal(arrays[column], values, equal_nan=True)


def test_a_number_that_is_missing_or_nan_is_an_empty_cell(digits, tmp_path, recording):
    def record(run, learner, metrics):
        if run.step >= 15:
            metrics.add(late=1.0)
        metrics.add(undefined=math.nan)

    recording(record)
    run_experiment(digits())
    lines = (tmp_path / "run" / "stats.csv").read_text().splitlines()
    names = lines[0].split(",")
    cells = [dict(zip(names, line.split(","), strict=True)) for line in lines[1:]]
    assert [row["train/late"] for row in cells] == ["", "1.0"]
    assert [row["train/undefined"] for row in cells] == ["", ""]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accuracy": 1.0}, "metrics.add: accuracy is measured already"),
        ({"learning_rate": 1.0}, "metrics.add: learning_rate is measured already"),
        ({"norm": "high"}, "metrics.add: norm: got 'high', expected a number or an array"),
        ({"norm": torch.zeros(3)}, r"metrics: norm had the shape \(\), now \(3,\)"),
        ({"classes": 1.0}, r"metrics: classes had the shape \(2,\), now \(\)"),
    ],
)
def test_a_wrong_use_is_answered_in_one_line(values, message):
    metrics = Metrics(build_loss("log", n_classes=2), CPU)
    metrics.add_batch(torch.tensor(1.0), torch.zeros(1, 2), torch.tensor([0]))
    metrics.add(norm=torch.tensor(1.0), classes=torch.zeros(2))
    with pytest.raises(UserError, match=message) as error:
        metrics.add(**values)
    assert "\n" not in str(error.value)


def test_values_are_those_of_the_moment_they_were_recorded():
    metrics = Metrics(build_loss("log", n_classes=2), CPU)
    parameter = nn.Parameter(torch.ones(()))
    for value in (1.0, 2.0):
        with torch.no_grad():
            parameter.fill_(value)
        metrics.add(parameter=parameter, mixed=parameter if value == 2 else 3)
    found = metrics.compute()
    assert (found["parameter"], found["mixed"]) == (1.5, 2.5)
    assert not metrics.sums["parameter"][0].requires_grad


class Both:
    """Two processes, as one of them sees both."""

    def __init__(self) -> None:
        self.size, self.is_main, self.rank, self.parts = 2, True, 0, []

    def gather_objects(self, value):
        return [part._own() for part in self.parts]


def test_over_processes_and_short_batches_the_means_are_those_of_one_process():
    torch.manual_seed(0)
    outputs, targets = torch.randn(90, 7), torch.randint(7, (90,))
    loss, function = build_loss("log", n_classes=7), {"of_class": class_accuracy}

    def measured(metrics, rows):
        x, y = outputs[rows], targets[rows]
        metrics.add_batch(loss(x, y), x, y)
        metrics.add(weight=len(y), largest=x.double().max(1).values.mean())

    alone, both = Metrics(loss, CPU, of_batch=function), Both()
    measured(alone, slice(0, 90))
    both.parts = [Metrics(loss, CPU, both, function) for _ in range(3)]
    for part, rows in zip(both.parts, (slice(0, 40), slice(40, 41), slice(41, 90)), strict=True):
        measured(part, rows)
    both.parts.append(Metrics(loss, CPU, both, function))  # an empty shard
    found, expected = both.parts[0].compute(), alone.compute()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_a_signal_while_a_step_looks_at_another_split_waits_for_its_end(
    digits, tmp_path, recording, monkeypatch
):
    """Half a step, with generators that have moved, is no state to resume from."""
    signals = iter([7, 20])
    wanted = [next(signals)]

    def record(run, learner, metrics):
        if run.config.output_dir.endswith("killed") and run.step == wanted[0]:
            wanted[0] = next(signals, None)
            signal.raise_signal(signal.SIGTERM)
        num = sum(len(targets) for _, targets in run.evaluation_batches("test"))
        metrics.add(drawn=torch.rand(()) * num)

    recording(record)
    straight, killed = (digits(output_dir=str(tmp_path / n)) for n in ("straight", "killed"))
    run_experiment(straight)
    assert run_through(killed) == 3
    assert end_of(killed) == end_of(straight)


def test_a_number_of_the_epoch_does_not_replace_one_that_is_measured(digits, monkeypatch):
    evaluate = session.Session.evaluate
    monkeypatch.setattr(
        session.Session, "evaluate", lambda run: evaluate(run) | {"train": {"accuracy": 0.5}}
    )
    with pytest.raises(UserError, match=r"results\['train'\]: got 'accuracy', expected another"):
        run_experiment(digits())


# ---- In evaluations ----------------------------------------------------------------------


def test_metrics_by_name_are_those_of_scikit_learn(digits, tmp_path):
    keys = ["top5_accuracy", "class_accuracy", "confusion"]
    *_, (stats, model) = train.experiment_generator(digits(metrics=keys, eval_batch_size=70))
    from src.data import build_data

    test = build_data(digits(), None).splits["test"]
    with torch.no_grad():
        outputs = model(test.inputs)
    predicted = outputs.argmax(1)
    top5 = top_k_accuracy_score(test.targets, outputs, k=5)
    assert stats["test/last/top5_accuracy"].iloc[-1] == pytest.approx(top5)
    arrays = Stats.read_arrays(tmp_path / "run")
    expected = confusion_matrix(test.targets, predicted, normalize="true")
    np.testing.assert_allclose(arrays["test/last/confusion"][-1], expected)
    np.testing.assert_allclose(arrays["test/last/class_accuracy"][-1], expected.diagonal())


def test_the_fifth_largest_output_counts_and_the_sixth_does_not():
    outputs = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]] * 6)
    total, weight = top5_accuracy(outputs, torch.arange(6))
    assert (int(total), weight) == (5, 6)


def test_many_small_weights_add_up_exactly(digits):
    metrics = Metrics(build_loss("log", n_classes=10), torch.device("cpu"))
    tenth = torch.tensor(0.1)
    metrics.add(weight=tenth, value=1.0)
    for _ in range(3000):
        metrics.add(weight=tenth, value=1.0)
    assert float(metrics.sums["value"][1]) == pytest.approx(3001 * float(tenth), rel=1e-12)


def test_less_is_better_where_it_should_be():
    better = {name for name, sign in DIRECTIONS.items() if sign == 1}
    assert better == {"accuracy", "top5_accuracy"}


def test_functions_of_your_own_measure_batches_and_splits(digits, tmp_path):
    own = ["tests.own_metrics:margin", "tests.own_metrics:agreement"]
    stats = run_experiment(digits(metrics=own, averaging="ema"))
    found = stats[["test/last/margin", "test/av/margin", "test/last/agreement"]]
    assert found.notna().all(axis=None)
    assert stats["test/last/agreement"].iloc[-1] > 0.8
    plain = run_experiment(digits(output_dir=None, averaging="ema"))
    assert stats["test/av/loss"].tolist() == plain["test/av/loss"].tolist()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("top_5_accuracy", "metrics: unknown 'top_5_accuracy'; did you mean 'top5_accuracy'"),
        ("tests.own_metrics:margins", "did you mean 'tests.own_metrics:margin'"),
        ("tests.own_metrics:accuracy", "there is a metric accuracy already"),
        ("tests.own_metrics:too_few", r"a function of \(outputs, targets\) or of \(run, model"),
        (
            "tests.own_metrics:no_pair",
            r"no_pair of a batch is to be \(sum, weight\); one",
        ),
        ("tests.own_metrics:wide", "wide: sum and weight have the shapes"),
        ("tests.own_metrics:nothing", "nothing of a split: got None, expected a number or an arr"),
    ],
)
def test_a_metric_that_is_none_is_answered_in_one_line(digits, name, message):
    with pytest.raises(UserError, match=message) as error:
        run_experiment(digits(metrics=[name]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["top5_accuracy", "class_accuracy", "confusion"])
def test_a_metric_of_classes_is_refused_where_there_are_none(digits, name):
    keys = {"dataset": "tests.own_parts:read_prices", "loss": "mse", "metrics": [name]}
    with pytest.raises(UserError, match=f"metrics: got '{name}', expected another one: this one"):
        run_experiment(digits(**keys))


def test_two_metrics_of_one_name_are_refused(digits):
    with pytest.raises(UserError, match="there is a metric top5_accuracy already"):
        run_experiment(digits(metrics=["top5_accuracy", "top5_accuracy"]))


# ---- Directions --------------------------------------------------------------------------


def test_the_best_is_chosen_by_a_metric_whose_direction_is_declared(digits, monkeypatch, tmp_path):
    keys = {"metrics": ["tests.own_metrics:margin"], "best_checkpoint_metric": "test/.*/margin"}
    with pytest.raises(UserError, match=r"margin has no direction .* add 'margin' to DIRECTIONS"):
        run_experiment(digits(save_best_checkpoint=True, **keys))
    monkeypatch.setitem(DIRECTIONS, "margin", 1)
    config = digits(save_best_checkpoint=True, output_dir=str(tmp_path / "declared"), **keys)
    run_experiment(config)
    best = torch.load(Path(config.output_dir) / "checkpoints" / "best.pt", weights_only=True)
    assert best["epoch"] == 2


def test_the_best_is_not_chosen_by_an_array(digits, monkeypatch):
    monkeypatch.setitem(DIRECTIONS, "class_accuracy", 1)
    keys = {"metrics": ["class_accuracy"], "best_checkpoint_metric": "test/last/class_accuracy"}
    with pytest.raises(UserError, match="a column of numbers: this one holds arrays"):
        run_experiment(digits(save_best_checkpoint=True, **keys))


def test_an_unknown_metric_lists_those_that_can_be_chosen():
    columns = ["test/last/loss", "test/last/time", "train/learning_rate"]
    for pattern in ("test/last/lose", "time"):
        with pytest.raises(UserError, match=r"matches none of: test/last/loss"):
            metric_columns(pattern, iter(columns))


def test_a_state_of_version_0_2_is_continued(digits):
    metrics = Metrics(build_loss("log", n_classes=2), CPU)
    state = {
        "total": torch.tensor(6.0, dtype=torch.float64),
        "correct": torch.tensor(3),
        "weight": 4,
        "predictions": 4,
        "at_last_reading": [2.0, 2.0, 1, 2],
    }
    metrics.load_state_dict(state)
    assert metrics.compute_since_last() == {"loss": 2.0, "accuracy": 1.0}
    metrics.add_batch(torch.tensor(4.0), torch.tensor([[9.0, 0.0]]), torch.tensor([0]))
    assert metrics.compute() == {"loss": 2.0, "accuracy": 0.8}
