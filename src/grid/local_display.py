"""How far the rows that this machine runs are: bars on a terminal, else a line every minute."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from src.grid.folders import Batch, Row
from src.grid.reports import seconds_left
from src.grid.status import row_statuses

SECONDS_BETWEEN_LINES = 60.0
SECONDS_BETWEEN_FRAMES = 1.0
MOST_BARS = 8  # of rows that run
ENDS = ("done", "interrupted", "failed")  # how a row may have ended


class LocalDisplay:
    """A context. A row that fails is named at once, and why it failed."""

    def __init__(self, batch: Batch, rows: Sequence[Row], jobs: int) -> None:
        self.batch, self.jobs = Batch(batch.path, list(rows)), jobs
        self.console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.fields[left]}"),
        )
        self.bars = Progress(*columns, console=self.console, auto_refresh=False, transient=True)
        self.of_all = self.bars.add_task("starts", total=len(rows), left="")
        self.of_rows: dict[str, TaskID] = {}
        self.due = 0.0 if self.console.is_terminal else time.monotonic() + SECONDS_BETWEEN_LINES

    def __enter__(self) -> "LocalDisplay":
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bars.stop()

    def failed(self, row: Row, why: str | None = None) -> None:
        """why: None: what its folder says."""
        (status,) = row_statuses(Batch(self.batch.path, [row]), None)
        words = Text.assemble(("failed", "red"), f" {row.name}: {why or status.cause}")
        self.console.print(words, soft_wrap=True)

    def update(self, ended: Counter[str]) -> None:
        """Called often, reads the folders every second. ended: how many rows, of ENDS."""
        if (began := time.monotonic()) < self.due:
            return
        statuses = row_statuses(self.batch, None)
        running = [status for status in statuses if status.state == "running"]
        parts = [f"{ended['done']}/{len(statuses)} done"]
        parts += [f"{ended[how]} {how}" for how in ENDS[1:] if ended[how]]
        words = ", ".join([*parts, f"{len(running)} running"])
        left = seconds_left(statuses, self.jobs)
        time_left = "" if left is None else f"about {timedelta(seconds=round(left))} left"
        if not self.console.is_terminal:
            print(", ".join(filter(None, [words, time_left])), file=sys.stderr, flush=True)
            self.due = began + SECONDS_BETWEEN_LINES
            return
        shown = {status.row.name: status for status in running[:MOST_BARS]}
        for name in self.of_rows.keys() - shown.keys():
            self.bars.remove_task(self.of_rows.pop(name))
        for name, status in shown.items():
            if name not in self.of_rows:
                number = name.partition("_")[0]
                self.of_rows[name] = self.bars.add_task(f"run {number}", total=1, left="")
            self.bars.update(self.of_rows[name], completed=status.progress)
        amount = ended.total() + sum(status.progress for status in running)
        self.bars.update(self.of_all, description=words, completed=amount, left=time_left)
        self.bars.refresh()
        # Thousands of runs take a while to look at.
        self.due = time.monotonic() + max(SECONDS_BETWEEN_FRAMES, 20 * (time.monotonic() - began))
