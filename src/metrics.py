"""The metrics: what is measured, which direction is better, which columns of stats.csv are meant.

The loss measures itself and the accuracy (src/losses.py). A step of training records what else it
likes: `metrics.add(grad_norm=norm)` in train_step. Evaluations measure what the key `metrics`
lists, by names of METRICS here or as module.path:function. Whatever has a name is a column of
stats.csv, split/model/metric as in test/last/accuracy, of training train/metric; arrays are files
in the run folder's arrays/. Nothing here imports torch, as whoever looks at results needs none.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from src.config import import_function, is_import_path
from src.support import UserError, bad_value, closest, pick, short_repr

if TYPE_CHECKING:
    from torch import Tensor

# 1: more is better, -1: less is better. The first one that a run has compares runs where nobody
# says by what. Perplexity comes first, as only language models have it and it is what they report.
# By a metric that is not here no best checkpoint and no best setting can be chosen.
DIRECTIONS = {
    "perplexity": -1,
    "accuracy": 1,
    "loss": -1,
    "error": -1,
    "top5_accuracy": 1,
}

# Keys that change what a loss measures, in evaluations too: losses of runs that differ in one of
# them are on different scales and cannot be compared. A perplexity is e to the loss.
LOSS_KEYS = ("loss", "loss_args", "label_smoothing", "loss_class_weights")
LOSS_METRICS = ("loss", "perplexity")

# Columns that differ between two runs of one configuration: they are no results.
TIME_METRICS = {"time", "data_time", "timestamp", "examples_per_second", "peak_share"}
SYSTEM_PREFIX = "system/"  # of columns about the use of the machine
POSITION = {"epoch", "step", "seen_examples", "learning_rate"}  # where training is
# Columns are called so already: what a fork measures has another name.
RESERVED = {"loss", "accuracy", "perplexity"} | TIME_METRICS | POSITION


# ---- What evaluations measure ------------------------------------------------------------


def check_classes(metric: str, outputs: "Tensor", targets: "Tensor") -> None:
    """UserError unless there is an output a class, (n, C), and targets are class numbers, (n,)."""
    if outputs.ndim != 2 or targets.ndim != 1 or targets.is_floating_point():
        raise bad_value("metrics", metric, "another one: this one takes examples with one class")


def top5_accuracy(outputs: "Tensor", targets: "Tensor") -> tuple["Tensor", int]:
    """Whether the class is among the five of the largest outputs."""
    check_classes("top5_accuracy", outputs, targets)
    largest = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
    return (largest == targets[:, None]).sum(), len(targets)


def class_accuracy(outputs: "Tensor", targets: "Tensor") -> tuple["Tensor", "Tensor"]:
    """(C,) The accuracy of each class's examples; NaN for a class that has none."""
    check_classes("class_accuracy", outputs, targets)
    correct = targets[outputs.argmax(1) == targets]
    n_classes = outputs.shape[1]
    return correct.bincount(minlength=n_classes), targets.bincount(minlength=n_classes)


def confusion(outputs: "Tensor", targets: "Tensor") -> tuple["Tensor", "Tensor"]:
    """(C, C) Which fraction of the examples of class i (row) is taken for class j (column)."""
    check_classes("confusion", outputs, targets)
    n_classes = outputs.shape[1]
    pairs = (targets * n_classes + outputs.argmax(1)).bincount(minlength=n_classes**2)
    return pairs.view(n_classes, n_classes), targets.bincount(minlength=n_classes)[:, None]


# A function of a batch, (outputs (n, …), targets (n, …)) -> (sum, weight): the metric is the sum of
# the sums over the sum of the weights, of all batches and processes, numbers or arrays. Or one of a
# whole split, (run, model, split) -> value: the Session, the model in evaluation mode, and the name
# of the split; run.evaluation_batches(name) gives the batches of that split or another one.
METRICS: dict[str, Callable[..., Any]] = {
    "top5_accuracy": top5_accuracy,
    "class_accuracy": class_accuracy,
    "confusion": confusion,
}


def build_metrics(names: Sequence[str]) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """(name -> function of a batch, name -> function of a split) of the key `metrics`.

    A function of your own has its own name, without the module's. UserError for what does not
    exist, is neither kind of function, or has a name that is taken.
    """
    kinds: dict[int, dict[str, Callable]] = {2: {}, 3: {}}
    for given in names:
        if is_import_path(given):
            function, name = import_function(given, "metrics"), given.partition(":")[2]
        else:
            function, name = pick(METRICS, given, "metrics"), given
        if name in kinds[2] | kinds[3] or name in RESERVED:
            raise bad_value("metrics", given, f"another name, as there is a metric {name} already")
        parameters = inspect.signature(function).parameters.values()
        needed = sum(p.default is p.empty and p.kind in (0, 1) for p in parameters)
        if needed not in kinds:
            expected = "a function of (outputs, targets) or of (run, model, split)"
            raise bad_value("metrics", given, expected)
        kinds[needed][name] = function
    return kinds[2], kinds[3]


# ---- Columns -----------------------------------------------------------------------------


def metric_name(column: str) -> str:
    """'test/last/loss' -> 'loss'."""
    return column.rpartition("/")[2]


def direction(column: str) -> int:
    """1 where more is better, -1 where less is."""
    return DIRECTIONS[metric_name(column)]


def is_time(column: str) -> bool:
    """Whether the column says how long something took, or when, or what the machine did."""
    return metric_name(column) in TIME_METRICS or column.startswith(SYSTEM_PREFIX)


def is_result(column: str) -> bool:
    """Whether the column says how good a model is, not where training is or how long it took."""
    return "/" in column and not is_time(column) and metric_name(column) not in POSITION


def metric_columns(
    pattern: str, columns: Iterable[str], *, key: str = "best_checkpoint_metric"
) -> list[str]:
    """The columns that the regular expression matches as a whole, else the one it matches in part.

    Training columns are found in part only where no other is. Raises UserError, naming the key,
    for no column, for several matched in part, and for columns of which some should rise and some
    fall.
    """
    columns = list(columns)
    known = [c for c in columns if metric_name(c) in DIRECTIONS]
    chosen = [c for c in known if re.fullmatch(pattern, c)]
    if not chosen:
        in_part = [c for c in known if pattern and re.search(pattern, c)]
        chosen = [c for c in in_part if not c.startswith("train/")] or in_part
        if len(chosen) > 1:
            raise UserError(
                f"{key}: {short_repr(pattern)} is a part of several columns, expected one of "
                f"them or a regular expression that matches whole ones: {', '.join(chosen)}"
            )
    if not chosen:
        others = [c for c in columns if is_result(c) and pattern and re.search(pattern, c)]
        if found := {metric_name(c): c for c in others if c not in known}:
            raise UserError(
                f"{key}: {next(iter(found.values()))} has no direction that is better; "
                f"add {next(iter(found))!r} to DIRECTIONS in src/metrics.py: 1 (more) or -1 (less)"
            )
        hint = f"; did you mean {close!r}?" if (close := closest(pattern, known)) else ""
        raise UserError(f"{key}: {short_repr(pattern)} matches none of: {', '.join(known)}{hint}")
    if len({direction(column) for column in chosen}) > 1:
        raise UserError(
            f"{key}: {short_repr(pattern)} matches columns that should rise "
            f"and columns that should fall: {', '.join(chosen)}"
        )
    return chosen


def main_columns(columns: Iterable[str]) -> tuple[str, str] | None:
    """(the column to choose by, the column to report), of the model `last`.

    The choice is made on the first split that is neither train nor test, by the first metric of
    DIRECTIONS that it has. Without such a split it is made on test, the split that is reported.
    None where no split but train was evaluated.
    """
    splits: dict[str, dict[str, str]] = {}  # split -> metric -> column
    for column in columns:
        found = re.fullmatch(rf"(?!train/)(.+)/last/({'|'.join(DIRECTIONS)})", column)
        if found:
            splits.setdefault(found[1], {})[found[2]] = column
    if not splits:
        return None
    others = [split for split in splits if split != "test"]
    chooses = splits[(others or ["test"])[0]]
    reports = splits["test" if "test" in splits else (others[1:] or others)[0]]
    by = next(chooses[name] for name in DIRECTIONS if name in chooses)
    report = next(reports[name] for name in (metric_name(by), *DIRECTIONS) if name in reports)
    return by, report
