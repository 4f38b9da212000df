"""profile: STEPS: where the time of a few training steps goes, as a trace and in the log."""

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import torch
from loguru import logger
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from src.runtime.train_state import TrainState
from src.support import UserError, write_atomically

TRACE = "trace.json.gz"
WARM_UP = 5  # steps before, in which memory is allocated and kernels are chosen
NUM_OPERATIONS = 10
NAME_WIDTH = 28  # a line on a terminal, with its time of day, has 80 columns


class NoProfiler:
    """Nothing is recorded."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        pass

    def steps(self, steps: range, state: TrainState, num_steps: int) -> Iterable[int]:
        """These steps of one epoch; num_steps: of the whole run."""
        return steps


class Profiler(NoProfiler):
    """Records the first `wanted` steps of this attempt after a warm-up, and nothing in between.

    A context around training, in which steps() goes around the steps of each epoch. Where an
    epoch ends, recording pauses until the next one: evaluations are not recorded. A run
    that ends or is stopped before writes what it has, in the place of an earlier attempt's; a
    failure is a warning, and training continues.
    """

    def __init__(self, wanted: int, folder: Path, device: torch.device) -> None:
        self.wanted, self.folder, self.device = wanted, folder, device
        self.warm_up: int | None = None  # steps still to come; None: training has not begun
        self.num_recorded = 0
        self.running: profile | None = None
        self.parts: list[profile] = []  # one an epoch
        self.seconds = self.data_seconds = 0.0  # recorded, and spent waiting for data
        self.since = (0.0, 0.0)  # both clocks, when recording was resumed
        # Its progress would be printed over ours; read when the first recording starts.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if not isinstance(error, UserError):  # such as that the folder is not ours any more
            self._write()

    def steps(self, steps: range, state: TrainState, num_steps: int) -> Iterator[int]:
        if self.warm_up is None:  # as long as fits
            self.warm_up = max(0, min(WARM_UP, num_steps - state.step - self.wanted))
        try:
            for step in steps:
                if self.warm_up or self.num_recorded == self.wanted:
                    self.warm_up = max(0, self.warm_up - 1)
                    yield step
                    continue
                self._resume(state)
                self.num_recorded += 1
                with record_function(f"step {step + 1}"):
                    yield step
                if self.num_recorded == self.wanted:
                    self._pause(state)
                    state.training.stop()  # writing is no training
                    self._write()
                    state.training.start()
        finally:
            self._pause(state)

    def _resume(self, state: TrainState) -> None:
        if self.running:
            return
        is_on_gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_on_gpu]
        with _warn_on_failure():
            self._wait()  # what earlier steps have left to do is not recorded
            running = profile(activities=activities)
            running.start()
            self.running = running
        if self.running is None:
            self.wanted = self.num_recorded + 1  # not tried again
        self.since = perf_counter(), state.data_time

    def _pause(self, state: TrainState) -> None:
        if self.running is None:
            return
        running, self.running = self.running, None
        with _warn_on_failure():
            self._wait()
            began, waited = self.since
            self.seconds += perf_counter() - began
            self.data_seconds += state.data_time - waited
            running.stop()
            self.parts.append(running)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _write(self) -> None:
        """The file and the lines of the log, once, where anything was recorded."""
        parts, self.parts = self.parts, []
        if parts:
            with _warn_on_failure():
                content = json.dumps(joined([_trace(part, self.folder) for part in parts]))
                write_atomically(self.folder / TRACE, gzip.compress(content.encode()))
                for line in self._lines(parts):
                    logger.info(line)

    def _lines(self, parts: Iterable[profile]) -> Iterator[str]:
        where = "GPU" if self.device.type == "cuda" else "CPU"
        yield f"{self.num_recorded} steps were recorded in {TRACE}; own time on the {where}:"
        yield from table(own_times(parts, is_on_gpu=where == "GPU"))
        share = self.data_seconds / self.seconds
        yield f"{share:.1%} of {self.seconds:.3f} s training waited for data"


def build_profiler(wanted: int | None, folder: Path | None, device: torch.device) -> NoProfiler:
    """None: nothing is recorded. Raises UserError where there is no folder for a trace."""
    if wanted is None:
        return NoProfiler()
    if folder is None:
        raise UserError(f"profile: got {wanted}, but output_dir is null: nowhere to write {TRACE}")
    return Profiler(wanted, folder, device)


@contextmanager
def _warn_on_failure() -> Iterator[None]:
    """A failed profile is no reason to lose a run."""
    try:
        yield
    except Exception as error:
        logger.warning("no profile: {}: {}", type(error).__name__, error)


# ---- What was recorded -------------------------------------------------------------------


def _trace(part: profile, folder: Path) -> dict[str, Any]:
    """The trace that torch writes to a file."""
    path = folder / f".trace.json.{os.getpid()}"
    try:
        part.export_chrome_trace(str(path))
        return json.loads(path.read_text())
    finally:
        path.unlink(missing_ok=True)


def joined(traces: list[dict[str, Any]]) -> dict[str, Any]:
    """One trace with the events of all; those of one process count from the same moment."""
    events = [event for trace in traces for event in trace["traceEvents"]]
    return traces[0] | {"traceEvents": events}


def own_times(parts: Iterable[profile], *, is_on_gpu: bool) -> dict[str, tuple[float, int]]:
    """Operation -> (seconds without those that it calls, calls); marks such as ours are none.

    A kernel's time on a GPU is that of the operation that launched it.
    """
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for part in parts:
        for event in part.key_averages():
            if event.device_type == DeviceType.CPU and not event.is_user_annotation:
                own = event.self_device_time_total if is_on_gpu else event.self_cpu_time_total
                seconds[event.key] += own / 1e6
                calls[event.key] += event.count
    return {name: (seconds[name], calls[name]) for name in seconds}


def table(times: dict[str, tuple[float, int]]) -> Iterator[str]:
    """A line each of the costliest operations: fraction of all, milliseconds, calls, name."""
    total = sum(seconds for seconds, _ in times.values()) or 1.0
    costliest = sorted(times.items(), key=lambda item: -item[1][0])[:NUM_OPERATIONS]
    for name, (seconds, calls) in costliest:
        short = name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…"
        yield f"{seconds / total:6.1%}  {1000 * seconds:10,.2f} ms  {calls:9,} calls  {short}"
