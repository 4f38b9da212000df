"""A stack: runs that one process trains together, each with its own folder, state and files.

A row of a stack is an ordinary Session. What they share is the process: its signals, its data, and
the one learner that trains the rows which are at the same step. A row that diverges, stops early or
has made its steps leaves; a row whose saved state is further than the others' joins when they have
come there. Both rebuild the stack from the rows' own learners, which changes no bits.
"""

import json
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from loguru import logger
from torch import nn

from src.config import Config, load_config
from src.logging import is_finished, lease
from src.optim import evaluated_models
from src.runtime import MAX_COST, Session, Shared, StopRequested
from src.stacking.learner import StackedLinear
from src.stacking.networks import StackedNetworks
from src.stacking.row import Row
from src.stacking.stackable import check_stack, is_linear
from src.support import UserError, processes, random_state

SECONDS_BETWEEN_LINES = 10.0  # of progress in each row's log, beside those at ends of epochs
Results = tuple[Sequence[pd.DataFrame], Sequence[nn.Module]]


def stacked_generator(
    configs: Sequence[Config], build_learner: Callable[[Session], Any] | None = None
) -> Generator[Results, None, None]:
    """Train runs together, and yield (stats so far of each, its model) after every epoch.

    configs: with engine=stacked, and equal in what stackable.py lists. build_learner: train.py's.
    Everything else is as in experiment_generator() of train.py, for each run. Where one cannot
    start, or its folder is taken away, the others are trained to their ends; then its UserError is
    raised, and until then it has no model.
    """
    check_stack(configs)
    if build_learner is None:
        import train

        build_learner = train.build_learner
    with Stack(configs, build_learner) as stack:
        if any(row.is_over for row in stack.rows):  # these were killed before they closed
            with stack.callers_turn():
                yield stack.results
            stack.end_rows()
        for number, steps in stack.epochs():
            stack.train(number, steps)
            stack.evaluate(steps)
            with stack.callers_turn():
                yield stack.results
        if stack.failures:
            raise stack.failures[0]


def run_stack(specs: Sequence[str]) -> str:
    """Train the runs of these files to their ends, those that are finished left out; what became
    of them, in a line."""
    configs = [load_config(spec) for spec in specs]
    left = [config for config in configs if not is_finished(config)]
    for _ in stacked_generator(left) if left else ():
        pass
    done = [json.loads(Path(c.output_dir or "", "done").read_text()) for c in configs]
    outcomes = Counter(str(content["outcome"]) for content in done)
    return f"{len(configs)} runs: " + ", ".join(f"{n} {what}" for what, n in outcomes.items())


class _Stats(Sequence[pd.DataFrame]):
    """The dataframes of the rows, which are made when they are looked at."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: Any) -> Any:
        found = self.rows[number]
        return [row.stats for row in found] if isinstance(number, slice) else found.stats


class Stack:
    """A context; see the module's docstring. Rows are known by their numbers."""

    def __init__(self, configs: Sequence[Config], build_learner: Callable[[Session], Any]) -> None:
        self.configs, self.build_learner = configs, build_learner
        self.shared = Shared(len(configs))
        self.rows: list[Row] = []
        self.learners: list[Any] = []  # of each row; None: it could not start
        self.failures: list[UserError] = []
        self.present: list[int] = []  # that are trained now, in the learner's order
        self.learner: Any = None
        self.step = 0  # how many steps these have made
        self.batches: Any = None
        self.next_step: int | None = None  # that self.batches are at
        self.data_time = 0.0  # of this epoch, seconds

    # ---- Opening and closing -------------------------------------------------------------

    def __enter__(self) -> "Stack":
        with ExitStack() as opened:
            opened.enter_context(self.shared)
            opened.push(self._close)
            lease.live_owner(*(Path(c.output_dir) for c in self.configs if c.output_dir))  # at once
            for number, config in enumerate(self.configs):
                self._open(Row(config, self.shared, number))
                self.shared.signals.check()
                if number == 0 and self.learners[0]:
                    self._check_memory()
            started = [row for row, x in zip(self.rows, self.learners, strict=True) if x]
            if not started:
                raise self.failures[0]
            self.first = started[0]
            self.saved = self.logged = perf_counter()
            self.cost = 0.0  # seconds that saving all states took
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._opened.__exit__(*error)

    def _open(self, row: Row) -> None:
        self.rows.append(row)
        self.learners.append(None)
        with self._guarded(row):
            row.__enter__()
            self._set_up(row)

    def _set_up(self, row: Row) -> None:
        with row.turn():
            data = row.load_data()
            if self.shared.data is None:
                self.shared.data = row.data = data.to_dense()
            self.learners[-1] = learner = self.build_learner(row)
            models = {"last": learner.model}
            models |= {name: average.model for name, average in learner.averages.items()}
            row.restore(learner, evaluated_models(models, row.config.evaluate_models))
            if row.device.type != "cpu" or not is_linear(row.config):
                logger.warning("the bits of a run may depend on its stack, see docs/stacks.md")

    def _check_memory(self) -> None:
        """UserError where the learners of all rows will not fit."""
        row, learner = self.rows[0], self.learners[0]
        size = sum(x.numel() * x.element_size() for x in learner.model.parameters())
        # Weights, averages, and two tensors of an optimizer, for the rows and in the stack, which
        # has gradients as well.
        size *= (7 + 2 * len(learner.averages)) * len(self.configs)
        free = processes.free_memory(row.device)
        if free is not None and size > free:
            words = f"{len(self.configs)} runs together take {processes.in_bytes(size)} of memory, "
            words += f"of which {processes.in_bytes(free)} are free"
            raise UserError(f"{words}: submit_multiple.py --stack N takes N at a time")

    @contextmanager
    def _guarded(self, row: Row) -> Iterator[None]:
        """What is wrong with one row ends that one."""
        try:
            yield
        except UserError as error:
            self.failures.append(error)
            row.close(error)

    def _close(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """However the stack ends. A signal, and a program that leaves, come between two steps: the
        rows save what they have."""
        if isinstance(error, StopRequested | GeneratorExit):
            self._write_rows()
        failures = [row.close(error) for row in self.rows if not row.is_closed]
        if failure := next(filter(None, failures), None):
            raise failure

    @property
    def results(self) -> Results:
        return _Stats(self.rows), [learner and learner.model for learner in self.learners]

    def end_rows(self) -> None:
        """Those that are over are finished in their folders."""
        for row in self.rows:
            if row.is_over and not row.is_closed:
                with self._guarded(row), row.turn():
                    row.end()
                if not row.is_closed:
                    row.close()

    # ---- Training ------------------------------------------------------------------------

    def epochs(self) -> Iterator[tuple[int, range]]:
        """The epochs that a row has left."""
        for number, steps in self.first.epochs_of_run():
            if any(not row.is_over and row.last_epoch < number for row in self.rows):
                yield number, steps
                self.end_rows()

    def train(self, number: int, steps: range) -> None:
        """The steps of an epoch, each row from where it is."""
        rows = [row for row in self.rows if not row.is_over and row.last_epoch < number]
        for row in rows:
            row.begin_epoch(number, steps)
        while left := [row for row in rows if not row.is_over]:
            self.step = min(row.step for row in left)
            self._choose([row for row in left if row.step == self.step])
            if self.step == steps.stop:
                return
            further = [row.step for row in left if row.step > self.step]
            self._make_steps(range(self.step, min([*further, steps.stop])), steps.stop)
            self._write_rows()

    def _choose(self, rows: Sequence[Row]) -> None:
        """These are trained from now on."""
        numbers = [self.rows.index(row) for row in rows]
        if numbers == self.present:
            return
        self._write_rows()
        self.present = numbers
        # twice where it is alone, see linear.py
        chosen = self.present * 2 if len(self.present) == 1 else self.present
        if self.learner:
            self.learner.release()
        kind = StackedLinear if is_linear(rows[0].config) else StackedNetworks
        self.learner = kind(
            [self.learners[number] for number in chosen],
            [self.rows[number].config for number in chosen],
            num_steps=rows[0].num_steps,
        )
        own = [self.rows[number].metrics for number in chosen]
        self.sums = self.learner.new_sums([metrics.sums for metrics in own])
        self.read = self.learner.new_sums([metrics.read for metrics in own])
        limits = [self.rows[number].config.max_allowed_loss for number in chosen]
        self.limits = torch.tensor(limits, dtype=torch.float64, device=self.learner.device)

    def _make_steps(self, steps: range, end_of_epoch: int) -> None:
        """Until they are made, or a row leaves."""
        learner, sums, signals = self.learner, self.sums, self.shared.signals
        interval = self.first.config.log_interval
        minutes = min(self.rows[number].config.checkpoint_minutes for number in self.present)
        if self.next_step != steps.start:
            # These rows begin here: as their states were saved, or as they were seeded.
            random_state.GlobalGenerators().load_state_dict(self.rows[self.present[0]].generators)
            self.batches = self.first.batches_from(steps.start)
        for step in steps:
            waiting_from = perf_counter()
            inputs, targets = next(self.batches)
            self.data_time += perf_counter() - waiting_from
            learner.step(step, inputs, targets, sums)
            self.step = self.next_step = step + 1
            if self.step == 1:
                self._choose_limits()
            if self.step % interval == 0 or self.step == end_of_epoch:
                if self._have_diverged():
                    return
                if perf_counter() - self.logged > SECONDS_BETWEEN_LINES:
                    self._log_progress()
            if perf_counter() - self.saved > 60 * minutes:
                self._save()
            if signals.received or signals.launcher:
                signals.check()

    def _choose_limits(self) -> None:
        """max_allowed_loss of rows that give none follows their first loss."""
        self._write_rows()
        for place, row in self._present_rows():
            if row.requested.max_allowed_loss is None:
                with self._guarded(row), row.turn():
                    row.epoch.choose_loss_limit()
                self.limits[place :: len(self.present)] = float(row.config.max_allowed_loss or 0)

    def _have_diverged(self) -> bool:
        """Whether rows leave, as the mean loss since the last look is out of bounds."""
        sums, read = self.sums, self.read
        recent = (sums.loss - read.loss) / (sums.weight - read.weight)
        self.read = sums.copy()
        is_good = recent.isfinite() & (recent <= self.limits)
        if is_good.all():
            return False
        self._write_rows()
        for place, row in self._present_rows():
            if not is_good[place]:
                row.diverge(recent[place].item())
                row.epoch.end_training()
                with self._guarded(row):
                    row.finish_epoch(self.learner.rate(place, self.step - 1), {})
        self.present = []  # all are written
        return True

    def _present_rows(self) -> list[tuple[int, Row]]:
        """With their places in the learner, without those that have failed since."""
        pairs = enumerate(self.rows[number] for number in self.present)
        return [(place, row) for place, row in pairs if not row.is_closed]

    def _write_rows(self) -> None:
        """What the stack has made of the rows that are present goes into their learners and
        Sessions."""
        for place, row in self._present_rows():
            self.learner.write_row(place, self.step)
            row.take(self.step, self.sums.of_row(place), self.read.of_row(place), self.data_time)

    def _log_progress(self) -> None:
        self._write_rows()
        for _, row in self._present_rows():
            with self._guarded(row):
                row.log_progress()
        self.logged = perf_counter()

    def _save(self) -> None:
        self.saved = perf_counter()
        self._write_rows()
        for _, row in self._present_rows():
            if not row.is_over:
                with self._guarded(row):
                    row.save()
        self.cost = perf_counter() - self.saved

    # ---- Between epochs ------------------------------------------------------------------

    def evaluate(self, steps: range) -> None:
        """Every split with every model of the rows that have come to the epoch's end, in one pass;
        then a row of stats of each."""
        self._write_rows()
        if steps:
            self._log_progress()
        rows = self._present_rows()
        for _, row in rows:
            row.epoch.end_training()
        results: dict[int, dict[str, Any]] = {place: {} for place, _ in rows}
        evaluated = self.first.evaluated if rows else ()
        batches_of = partial(self.first.split_batches, size=self.learner.evaluation_batch)
        for split in evaluated and [name for name in self.first.data.splits if name != "train"]:
            for model in evaluated:
                started = perf_counter()
                sums = self.learner.new_sums()
                added = {place: row.new_added() for place, row in rows}
                for inputs, targets in self.shared.signals.watched(batches_of(split)):
                    self.learner.measure(model, inputs, targets, sums, added)
                for place, row in rows:
                    added[place].sums = sums.of_row(place) | added[place].sums
                    found = added[place].compute() | row.measure_split(split, model)
                    times = {"time": perf_counter() - started, "data_time": 0.0}
                    results[place][f"{split}/{model}"] = found | times
        for place, row in rows:
            rate = self.learner.rate(place, self.step - 1) if steps else 0.0
            with self._guarded(row):
                row.finish_epoch(rate, results[place])
        if rows:
            self.sums, self.read = self.learner.new_sums(), self.learner.new_sums()
            self.data_time = 0.0

    @contextmanager
    def callers_turn(self) -> Iterator[None]:
        with random_state.isolate_rng(), self.shared.signals.released():
            yield
        if (perf_counter() - self.saved) * MAX_COST >= self.cost:
            self._save()
