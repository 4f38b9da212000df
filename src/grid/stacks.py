"""Runs of a batch that one process trains together (--stack): which ones, and their task.

A task is what one process runs. That of a stack is a folder below submissions/ with a spec.yaml
that train.py takes, `stack: [the runs' spec.yaml, …]`, and the job.log to which the job.log of each
run is a link.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.config import write_yaml
from src.grid.folders import Row
from src.support import UserError, write_atomically

if TYPE_CHECKING:
    from src.config import Config

AUTO, OFF = "auto", "off"
MOST = 128  # runs of a stack, where no number is given
FEWEST = 16  # that share a stack before there are several of a kind, for several processes


@dataclass(frozen=True)
class Task:
    """What one process runs: a run, or runs that it trains together."""

    runs: list[Row]
    row: Row  # whose spec.yaml train.py is called with, and whose job.log has what it prints

    @property
    def is_stack(self) -> bool:
        return self.row not in self.runs

    @property
    def unfinished(self) -> list[Row]:
        return [run for run in self.runs if not (run.folder / "done").exists()]


# ---- Which runs --------------------------------------------------------------------------


def choose_engines(
    rows: Sequence[dict[str, Any]], configs: Sequence["Config"], stack: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """(the rows, with engine=stacked where they are trained so; what is to be said of it).

    stack: auto: those that share a stack with another; N: all, and UserError where one cannot.
    """
    from src.stacking import is_linear, obstacle, stack_key

    reasons = [
        "engine: ordinary is given" if row.get("engine") == "ordinary" else obstacle(config)
        for row, config in zip(rows, configs, strict=True)
    ]
    if stack != AUTO and any(reasons):
        counts = Counter(filter(None, reasons))
        lines = [f"--stack {stack}: {n} of {len(rows)} runs: {why}" for why, n in counts.items()]
        raise UserError("\n".join(lines))
    sizes = Counter(stack_key(c) for c, why in zip(configs, reasons, strict=True) if not why)
    chosen, notes = [], Counter[str]()
    for row, config, why in zip(rows, configs, reasons, strict=True):
        if stack == AUTO and not why and not is_linear(config):  # a gain on GPUs at most
            why = "networks are trained together where a number is given"
        elif stack == AUTO and not why and sizes[stack_key(config)] == 1:
            why = "no other run could share its stack"
        if why:
            notes[why] += 1
        chosen.append(dict(row) if why else row | {"engine": "stacked"})
    return chosen, [f"{n} by themselves, as {why}" for why, n in notes.items()]


def tasks_of(rows: Sequence[Row], stack: str | None, *, num_processes: int = 1) -> list[list[Row]]:
    """The runs that each process has, in the order of the rows. stack: how many at most; None or
    off: one each."""
    if stack in (None, OFF):
        return [[row] for row in rows]
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        groups[_key(row)].append(row)
    num_stacked = sum(len(group) for key, group in groups.items() if isinstance(key, str))
    most = min(MOST, max(FEWEST, -(-num_stacked // num_processes)))
    most = most if stack == AUTO else int(str(stack))
    tasks = []
    for group in groups.values():
        number = -(-len(group) // most)
        size = -(-len(group) // number)  # stacks of about the same size
        tasks += [group[start : start + size] for start in range(0, len(group), size)]
    order = {row.name: place for place, row in enumerate(rows)}
    return sorted(tasks, key=lambda task: order[task[0].name])


def _key(row: Row) -> Any:
    """A str for rows that may share a stack with those of the same; the row's path where it is run
    by itself."""
    from src.config import make_config  # here, as report.py starts without numpy
    from src.stacking import obstacle, stack_key

    try:
        config = make_config({k: x for k, x in row.values.items() if k != "output_dir"})
        is_stacked = config.engine == "stacked" and not obstacle(config)
        return stack_key(config) if is_stacked else row.folder
    except UserError:  # train.py says what is wrong with it
        return row.folder


def describe(tasks: Sequence[Sequence[Row]]) -> str:
    """'6 stacks of 18 runs, 3 runs by themselves'."""
    sizes = Counter(len(task) for task in tasks)
    alone = sizes.pop(1, 0)
    parts = [f"{n} stack{'s' * (n > 1)} of {size} runs" for size, n in sizes.items()]
    if alone:
        parts.append("1 run by itself" if alone == 1 else f"{alone} runs by themselves")
    return ", ".join(parts)


# ---- Their task --------------------------------------------------------------------------


def local_tasks(submissions: Path, rows: Sequence[Row], stack: str | None, jobs: int) -> list[Task]:
    """The tasks of this machine; those of stacks are written."""
    tasks = []
    for runs in tasks_of(rows, stack, num_processes=jobs):
        if len(runs) == 1:
            own_log(runs[0])
            tasks.append(Task(runs, runs[0]))
        else:
            folder = next(p for n in count(1) if not (p := submissions / f"stack-{n}").exists())
            tasks.append(write_stack(folder, runs))
    return tasks


def write_stack(folder: Path, runs: Sequence[Row]) -> Task:
    """The folder of a stack's task."""
    folder.mkdir(parents=True)
    specs = [str(run.spec) for run in runs]
    content: Mapping[str, Any] = {"output_dir": str(folder), "stack": specs}
    write_atomically(folder / "spec.yaml", write_yaml(content))
    for run in runs:
        if run.log.exists() and not run.log.is_symlink():
            free = next(p for n in count(1) if not (p := run.folder / f"job.{n}.log").exists())
            os.rename(run.log, free)
        run.log.unlink(missing_ok=True)
        run.log.symlink_to(os.path.relpath(folder / "job.log", run.folder))
    return Task(list(runs), Row(folder, {}))


def own_log(run: Row) -> None:
    """A run that was in a stack has a log of its own from now on."""
    if run.log.is_symlink():
        run.log.unlink()
