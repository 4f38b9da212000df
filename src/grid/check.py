"""All that is wrong with the rows of a grid, reported once, before the first is submitted.

check_rows() loads each row as a Config. Whether names and their arguments exist only the code that
will run knows, which imports torch: a process beside is asked, `python -m src.grid.check`. It reads
questions from stdin as JSON, a list of [kind, settings], and prints an answer to each: {},
{"errors": lines} or {"unknown": reason}.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import fields
from functools import cache
from typing import Any

from loguru import logger

from src.config import KEYS, Config, make_config
from src.grid.folders import row_identity
from src.keys import AugmentationKeys
from src.support import ROOT, UserError, one_line, short_repr

MOST_LINES = 20
MOST_VALUES = 3  # of a key, in one line
MOST_CHARACTERS = 80  # of a value
PATIENCE_SECONDS = 120.0

Row = Mapping[str, Any]  # key -> value
# What is looked up together: each name with the keys that have a say in whether it is right.
# name_checks() has the function for each.
QUESTIONS = {
    "dataset": (
        *("dataset", "data_splits_map", "data_dir", "data_normalize", "data_mean", "data_std"),
        *("data_version", "data_group_by_length", "data_on_device", "model_input_shape", "loss"),
        *(field.name for field in fields(AugmentationKeys)),
    ),
    "model": (
        *("model", "model_pretrained", "model_weights", "model_head_init", "model_freeze"),
        *("model_zero_shot_templates", "layer_decay", "loss"),
    ),
    "optim_alg": ("optim_alg", "optim_args", "momentum", "ada_eps", "compile"),
    "lr_schedule": ("lr_schedule", "warmup_steps"),
    "averaging": ("averaging",),
    "loss": (
        *("loss", "loss_args", "label_smoothing", "loss_class_weights"),
        *("grad_accum_steps", "batch_size"),
    ),
    "metrics": ("metrics",),
}


def errors_of(check: Callable[..., object], *arguments: object) -> list[str]:
    """The lines of the UserError that the check raises; [] if it raises none."""
    try:
        check(*arguments)
    except UserError as error:
        return str(error).splitlines()
    return []


def check_rows(rows: Sequence[Row], *, unread: Collection[str] = ()) -> list[str]:
    """Lines such as "34 runs: base_lr: got …", those of most runs first; none if all is well.

    Every row is loaded as a Config, and its names are looked up by the code that will run, in
    a process beside; where that can't be, a warning says why. Rows are counted from 0.

    unread: keys that the rows lack as their values could not be read. Then rows are not counted,
    and what may depend on those keys is not reported.
    """
    problems: list[tuple[int, str]] = []  # number of the row, line
    seen: dict[str, int] = {}
    with _lookup_process() as process:  # it imports torch while the rows are loaded
        for number, row in enumerate(rows):
            config, errors = load(row)
            problems += [(number, error) for error in errors]
            if config and not unread:
                first = seen.setdefault(repr(config), number)
                # where the rows are equal as well, the grid has reported it
                if first != number and row_identity(row) != row_identity(rows[first]):
                    problems.append((number, f"the same experiment as run {first}"))
        questions = distinct_questions(rows, unread)
        try:
            answers = _ask(process, list(questions)) if questions else []
        except UserError as error:
            return [*_summary(problems, rows, unread), str(error)]
    for numbers, answer in zip(questions.values(), answers, strict=False):
        problems += [(n, error) for n in numbers for error in answer.get("errors", [])]
    return _summary(problems, rows, unread)


def load(row: Row) -> tuple[Config | None, list[str]]:
    """The row as a Config, or all that keeps it from being one: what is wrong with one key does
    not hide what is wrong with others."""
    lines: list[str] = []
    config, dropped = None, set[str]()
    values = {key: value for key, value in row.items() if key in KEYS}
    while config is None:
        try:
            config = make_config(values)
        except UserError as error:
            found = str(error).splitlines()
            # with the default in place of a wrong value, other keys may seem to contradict it
            lines += [line for line in found if not _mentions(line, dropped)]
            wrong = {match[0] for line in found if (match := re.match(r"\w+", line))}
            if not wrong & values.keys():
                break
            dropped |= wrong
            values = {key: value for key, value in values.items() if key not in dropped}
    if unknown := {key: value for key, value in row.items() if key not in KEYS}:
        lines += errors_of(make_config, unknown)
    return (None if lines else config), lines


def _mentions(line: str, keys: Collection[str]) -> bool:
    return bool(keys) and not set(re.findall(r"\w+", line)).isdisjoint(keys)


def _summary(
    problems: Sequence[tuple[int, str]], rows: Sequence[Row], unread: Collection[str]
) -> list[str]:
    """A line for the problems that differ in the value of their key alone."""
    # (text before, text after the value) -> the values and the numbers of the rows, in order
    groups: dict[tuple[str, str], tuple[dict[str, None], dict[int, None]]] = {}
    for number, line in problems:
        # 'batch_size: got 0, expected …' -> ('batch_size: got ', '0', ', expected …')
        named = {line.partition(":")[0], line.partition("=")[0]} & rows[number].keys()
        key = max(named, key=len, default="")
        value = short_repr(rows[number][key]) if key else ""
        start = line.find(value, len(key) + 1) if key else -1
        value, start = (value, start) if start >= 0 else ("", len(line))
        values, numbers = groups.setdefault((line[:start], line[start + len(value) :]), ({}, {}))
        values[value] = numbers[number] = None
    shown = sorted(groups.items(), key=lambda group: -len(group[1][1]))
    shown = [group for group in shown if not _mentions("".join(group[0]), unread)]
    lines = []
    for (before, after), (values, numbers) in shown[:MOST_LINES]:
        some = ", ".join(one_line(value, MOST_CHARACTERS) for value in list(values)[:MOST_VALUES])
        some += ", …" * (len(values) > MOST_VALUES)
        which = f"run {next(iter(numbers))}" if len(numbers) == 1 else f"{len(numbers):,} runs"
        lines.append(("" if unread else f"{which}: ") + f"{before}{some}{after}")
    more = len(shown) - len(lines)
    return lines + [f"… and {more:,} more"] * (more > 0)


def find_mistakes(values: Row, error: UserError | None = None) -> list[str]:
    """All that is wrong with the keys of a run, a line each: unknown keys and values; where these
    are right, names, which are looked up with torch. Nothing is downloaded.

    error: what kept the run from starting. Where it is none of the lines, no name was mistaken,
    and there are none.
    """
    if error and str(error).partition(":")[0] not in QUESTIONS:
        return []
    _, lines = load(values)
    if lines:
        return lines
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for kind, keys in QUESTIONS.items():
        settings = {key: values[key] for key in keys if values.get(key) is not None}
        found = answer(kind, settings).get("errors", []) if settings else []
        lines += [line for line in found if line not in lines]
    return lines if error is None or str(error) in lines else []


def distinct_questions(rows: Sequence[Row], unread: Collection[str] = ()) -> dict[str, list[int]]:
    """Each question that some row raises, as JSON -> the numbers of those rows."""
    questions: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        for kind, keys in QUESTIONS.items():
            settings = {key: row[key] for key in keys if row.get(key) is not None}
            if kind not in unread and settings:  # the defaults are right
                with suppress(TypeError):  # a date or another value of YAML alone is no name
                    questions.setdefault(json.dumps([kind, settings]), []).append(number)
    return questions


@contextmanager
def _lookup_process() -> Iterator[subprocess.Popen]:
    """main() of this module, started; it touches no GPU, and ends with the block."""
    settings = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "src.grid.check"],
        cwd=ROOT,
        env=os.environ | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _ask(process: subprocess.Popen, questions: Sequence[str]) -> list[dict[str, Any]]:
    """The answers; where the process or this machine has none, a warning says why."""
    answers = []
    try:
        output, errors = process.communicate(f"[{','.join(questions)}]", PATIENCE_SECONDS)
        if process.returncode:
            reason = (errors.strip().splitlines() or [f"ended by {process.returncode}"])[-1]
            if "Error" in reason and "'torch'" not in reason:  # which a login node may lack
                raise UserError(f"the code cannot be imported, so no run would start: {reason}")
        else:
            answers = json.loads(output)
            reason = "; ".join({a["unknown"]: None for a in answers if "unknown" in a})
    except subprocess.TimeoutExpired:
        reason = f"no answer within {PATIENCE_SECONDS:g} seconds"
    if reason:
        logger.warning("not all names could be looked up: {}", " ".join(reason.split()))
    return answers


@cache
def name_checks() -> dict[str, Callable[[Config], object]]:
    """Kind of question -> what builds it from a Config without data, or raises UserError."""
    from torch import nn  # here, as whoever submits needs no torch

    from src.data import check_dataset
    from src.losses import check_cut, make_loss
    from src.metrics import build_metrics
    from src.models import check_model
    from src.optim import build_averaged_models, build_optimizer, build_schedule

    layer = nn.Linear(2, 2)  # something to optimise and to average

    def check_loss(config: Config) -> None:
        """By itself, as the targets of the data are not known."""
        weights = config.loss_class_weights
        loss = make_loss(
            config.loss,
            n_classes=2 if weights is None else len(weights),
            label_smoothing=config.label_smoothing,
            class_weights=weights,
            loss_args=config.loss_args,
        )
        check_cut(loss, config)

    return {
        "dataset": check_dataset,
        "model": check_model,
        "optim_alg": lambda config: build_optimizer(config, layer),
        "lr_schedule": lambda config: build_schedule(
            config.lr_schedule, num_steps=100, warmup_steps=config.warmup_steps
        ),
        "averaging": lambda config: build_averaged_models(config.averaging, layer),
        "loss": check_loss,
        "metrics": lambda config: build_metrics(config.metrics),
    }


def answer(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What is wrong with these settings, or why this machine cannot know.

    Settings that make no Config have no answer: whoever loads the whole row explains them.
    """
    try:
        config = make_config(settings)
    except UserError:
        return {}
    try:
        name_checks()[kind](config)
    except UserError as error:
        if not isinstance(error.__cause__, AssertionError | ImportError):
            return {"errors": str(error).splitlines()}
        return {"unknown": str(error)}  # the node that runs may have the GPU or the package
    except Exception as error:
        return {"unknown": f"{kind}: {one_line(error)}"}
    return {}


def main() -> None:
    name_checks()  # the imports take seconds, and the questions come later
    with redirect_stdout(sys.stderr):  # of the libraries that print
        answers = [answer(kind, settings) for kind, settings in json.load(sys.stdin)]
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
