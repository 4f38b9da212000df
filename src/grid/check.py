"""All that is wrong with the rows of a grid, said once, before the first is submitted."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from loguru import logger

from src.config import KEYS, Config, make_config
from src.grid.folders import row_identity
from src.grid.journal import SubmitOptions
from src.grid.slurm import commands as slurm
from src.keys import AugmentationKeys
from src.support import ROOT, UserError, one_line, short_repr

MOST_LINES = 20
MOST_VALUES = 3  # of a key, in one line
MOST_CHARACTERS = 80  # of a value
PATIENCE_SECONDS = 120.0

# What is looked up together: each name with the keys that have a say in whether it is right.
# The checks stand in src/grid/name_lookup.py under the same names.
QUESTIONS = {
    "dataset": (
        "dataset",
        "data_splits_map",
        "data_dir",
        "data_normalize",
        "data_mean",
        "data_std",
        "data_version",
        "data_group_by_length",
        "data_on_device",
        *(field.name for field in fields(AugmentationKeys)),
        "loss",
    ),
    "model": (
        "model",
        "model_pretrained",
        "model_weights",
        "model_head_init",
        "model_zero_shot_templates",
        "model_freeze",
        "layer_decay",
        "loss",
    ),
    "optim_alg": ("optim_alg", "optim_args", "momentum", "ada_eps"),
    "lr_schedule": ("lr_schedule", "warmup_steps"),
    "averaging": ("averaging",),
    "loss": ("loss", "label_smoothing", "loss_class_weights"),
}


def check_slurm(options: SubmitOptions) -> list[str]:
    """What Slurm would refuse of the script and the options of sbatch."""
    if options.is_local:
        return []
    errors = errors_of(slurm.check_script, options.script, not options.no_array)
    errors += errors_of(slurm.check_extra, options.extra)
    errors += errors_of(slurm.check_job, options.after) if options.after else []
    # What sbatch would be called with can be shown where there is no Slurm.
    return errors + ([] if options.dry_run else errors_of(slurm.check_installed))


def errors_of(check: Callable[..., object], *arguments: object) -> list[str]:
    """The lines of the UserError that the check raises; [] if it raises none."""
    try:
        check(*arguments)
    except UserError as error:
        return str(error).splitlines()
    return []


def check_rows(rows: Sequence[Mapping[str, Any]], *, unread: Collection[str] = ()) -> list[str]:
    """Lines such as "34 rows: base_lr: got …", those of most rows first; none if all is well.

    Every row is loaded as a Config, and its names are looked up by the code that will run, in
    a process beside; where that can't be, a warning says why. Rows are counted from 0.

    unread: keys that the rows lack as their values could not be read. Then rows are not counted,
    and nothing is said of what may hang on those keys.
    """
    problems, answers = Problems(), []
    seen: dict[str, int] = {}
    with lookup_process() as process:  # it imports torch while the rows are loaded
        for number, row in enumerate(rows):
            config, errors = load(row)
            problems.add(number, row, errors)
            # as text they differ, else the grid has told of it: 32 and '32'
            if config and not unread and (first := seen.setdefault(repr(config), number)) != number:
                if row_identity(row) == row_identity(rows[first]):
                    continue
                problems.add(number, row, [f"the same experiment as run {first}"])
        questions = distinct_questions(rows, unread)
        try:
            answers = ask(process, list(questions)) if questions else []
        except UserError as error:
            return [*problems.lines(unread), str(error)]
    for numbers, answer in zip(questions.values(), answers, strict=False):
        for number in numbers:
            problems.add(number, rows[number], answer.get("errors", []))
    return problems.lines(unread)


def load(row: Mapping[str, Any]) -> tuple[Config | None, list[str]]:
    """The row as a Config, or all that keeps it from being one: what is wrong with one key does
    not hide what is wrong with others."""
    lines: list[str] = []
    values = {key: value for key, value in row.items() if key in KEYS}
    dropped: set[str] = set()
    while True:
        try:
            config = make_config(values)
            break
        except UserError as error:
            found = str(error).splitlines()
            # with the default in place of a wrong value, other keys may seem to contradict it
            lines += [line for line in found if not mentions(line, dropped)]
            wrong = {match[0] for line in found if (match := re.match(r"\w+", line))}
            if not wrong & values.keys():
                config = None
                break
            dropped |= wrong
            values = {key: value for key, value in values.items() if key not in dropped}
    if unknown := {key: value for key, value in row.items() if key not in KEYS}:
        lines += errors_of(make_config, unknown)
    return (None if lines else config), lines


def mentions(line: str, keys: Collection[str]) -> bool:
    """Whether a line names one of the keys."""
    return bool(keys) and not set(re.findall(r"\w+", line)).isdisjoint(keys)


class Problems:
    """Errors of rows, those together that differ in the value of their key alone."""

    def __init__(self) -> None:
        # (text before, text after the value) -> the values and the rows, in order
        self.groups: dict[tuple[str, str], tuple[dict[str, None], dict[int, None]]] = {}

    def add(self, number: int, row: Mapping[str, Any], lines: Sequence[str]) -> None:
        for line in lines:
            before, value, after = around_value(line, row)
            values, numbers = self.groups.setdefault((before, after), ({}, {}))
            values[value] = numbers[number] = None

    def lines(self, unread: Collection[str] = ()) -> list[str]:
        groups = sorted(self.groups.items(), key=lambda group: -len(group[1][1]))
        groups = [group for group in groups if not mentions("".join(group[0]), unread)]
        lines = []
        for (before, after), (values, numbers) in groups[:MOST_LINES]:
            some = ", ".join(map(shortened, list(values)[:MOST_VALUES]))
            some += ", …" * (len(values) > MOST_VALUES)
            which = f"run {next(iter(numbers))}" if len(numbers) == 1 else f"{len(numbers):,} runs"
            lines.append(("" if unread else f"{which}: ") + f"{before}{some}{after}")
        more = len(groups) - len(lines)
        return lines + [f"… and {more:,} more"] * (more > 0)


def around_value(line: str, row: Mapping[str, Any]) -> tuple[str, str, str]:
    """'batch_size: got 0, expected …' -> ('batch_size: got ', '0', ', expected …')."""
    starts = (line.partition(":")[0], line.partition("=")[0])
    named = [start for start in starts if start in row]
    key = max(named, key=len, default="")
    value = short_repr(row.get(key))
    start = line.find(value, len(key) + 1) if named else -1
    return (line, "", "") if start < 0 else (line[:start], value, line[start + len(value) :])


def shortened(value: str) -> str:
    return one_line(value, MOST_CHARACTERS)


# ---- Looking names up --------------------------------------------------------------------


def distinct_questions(
    rows: Sequence[Mapping[str, Any]], unread: Collection[str] = ()
) -> dict[str, list[int]]:
    """Each question that some row raises, as JSON -> the numbers of those rows."""
    questions: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        for kind, keys in QUESTIONS.items():
            if kind in unread:
                continue
            settings = {key: row[key] for key in keys if row.get(key) is not None}
            if settings and (question := as_json([kind, settings])):  # the defaults are right
                questions.setdefault(question, []).append(number)
    return questions


def as_json(value: object) -> str | None:
    """None for a date or another value of YAML alone, which no name or argument is."""
    try:
        return json.dumps(value)
    except TypeError:
        return None


@contextmanager
def lookup_process() -> Iterator[subprocess.Popen]:
    """src.grid.name_lookup, started; it touches no GPU, and ends with the block."""
    settings = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "src.grid.name_lookup"],
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


def ask(process: subprocess.Popen, questions: Sequence[str]) -> list[dict[str, Any]]:
    """The answers of src.grid.name_lookup; a warning where it, or this machine, has none."""
    try:
        output, errors = process.communicate(f"[{','.join(questions)}]", PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        return warned(f"no answer within {PATIENCE_SECONDS:g} seconds")
    if process.returncode:
        reason = (errors.strip().splitlines() or [f"ended by {process.returncode}"])[-1]
        if "Error" in reason and "'torch'" not in reason:  # which a login node may lack
            raise UserError(f"the code cannot be imported, so no run would start: {reason}")
        return warned(reason)
    answers = json.loads(output)
    if reasons := {answer["unknown"]: None for answer in answers if "unknown" in answer}:
        warned("; ".join(reasons))
    return answers


def warned(reason: str) -> list[dict[str, Any]]:
    """No answers, and a warning that says so."""
    logger.warning("not all names could be looked up: {}", " ".join(reason.split()))
    return []


def find_mistakes(values: Mapping[str, Any], error: UserError | None = None) -> list[str]:
    """All that is wrong with the keys of a run, a line each: unknown keys, values, then names.

    error: what kept the run from starting. Where it is none of the lines, no name was mistaken,
    and there are none. Nothing is downloaded.
    """
    from src.grid.name_lookup import CHECKS, answer  # torch, which who asks has imported

    if error and str(error).partition(":")[0] not in CHECKS:
        return []
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    _, lines = load(values)
    known = {key: value for key, value in values.items() if key in KEYS and value is not None}
    right = {key: value for key, value in known.items() if not load({key: value})[1]}
    for kind, keys in QUESTIONS.items():
        settings = {key: right[key] for key in keys if key in right}
        found = answer(kind, settings).get("errors", []) if settings else []
        lines += [line for line in found if line not in lines]
    return lines if error is None or str(error) in lines else []
