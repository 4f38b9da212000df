"""The certificate: a run that is killed again and again ends as one that runs straight through.

Both run in processes of their own. Then their folders are compared in all that must not depend on
kills: tensors by their bytes, numbers by all their digits (NaN equals NaN, and 0.0 is not -0.0).
Times are no result: they are left out.
"""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.logging import Stats
from src.metrics import is_time, metric_name
from src.runtime.checkpoints import CheckpointFiles, CorruptCheckpoint, read_state
from src.support import ROOT, UserError

TRAIN = ROOT.resolve() / "train.py"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
STOPPED = 75  # train.py's exit code for a signal that it has acted upon
MOMENTS = ("start-up", "training", "evaluation", "the writing of a state")
STARTUP, TRAINING, EVALUATION, WRITING = MOMENTS
STEPS_PER_KILL = 6  # every attempt takes some: until its first state is saved, and to stop
RESERVE = 0.2  # of the run, so that the last kills do not miss it
SECONDS_TO_END = 600.0  # from a signal to the end of the step and of the saving
POLL_INTERVAL = 0.001
LINES_SHOWN = 20  # of the output of a run that failed

Child = subprocess.Popen[bytes]


class NotCertified(Exception):  # noqa: N818 - the run has failed, not this program
    """The reason why there is no certificate; the folders of both runs are kept."""


class TooShort(NotCertified):
    """The run ends before all kills; nothing of it is of interest."""

    def __init__(self, what: str, num_kills: int) -> None:
        remedy = "take a longer train_length, or fewer --kills"
        super().__init__(f"{what}: too short for {num_kills} kills; {remedy}")


@dataclass(frozen=True)
class Kill:
    """A signal after a step, or in the start-up."""

    signal: signal.Signals
    moment: str
    step: float


@dataclass(frozen=True)
class Pace:
    """The times and epochs of the straight run, by which moments are chosen; in seconds."""

    startup: float  # until its first step
    evaluation: float  # an epoch
    epoch_ends: Sequence[int]


def plan(num_kills: int, epoch_ends: Sequence[int], draw: random.Random) -> list[Kill]:
    """A third of each signal, a fifth of each moment but training, which has the rest.

    Raises TooShort.
    """
    if (num_steps := max(epoch_ends, default=0)) < STEPS_PER_KILL * num_kills:
        raise TooShort(f"a run of {num_steps} steps", num_kills)
    signals = sorted((SIGNALS[i % 3] for i in range(num_kills)), key=SIGNALS.index)
    moments = [STARTUP] * (num_kills // 5)
    # one that waits for the end of an epoch may use up a whole one
    moments += [EVALUATION] * min(num_kills // 5, len(epoch_ends) // 2)
    # where only kill -9 leaves half a file, and those come first
    writing = [WRITING] * (num_kills // 5)
    moments += [TRAINING] * (num_kills - len(moments) - len(writing))
    draw.shuffle(moments)
    pairs = list(zip(signals, writing + moments, strict=True))
    draw.shuffle(pairs)
    interval = (1 - RESERVE) * num_steps / num_kills
    return [Kill(*pair, draw.uniform(i, i + 1) * interval) for i, pair in enumerate(pairs)]


def certify(
    config: str, overrides: Sequence[str], num_kills: int, *, seed: int, output: str | None = None
) -> str:
    """What was shown, in one line. Raises NotCertified where it was not, UserError for mistakes.

    seed: of the moments. output: a folder that keeps both runs; None: one that is removed, unless
    somebody must look at what is in it.
    """
    folder = Path(output or tempfile.mkdtemp(prefix="verify_resume.")).absolute()
    is_kept = output is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"--output: {folder} is not empty")
        return _certify(config, overrides, num_kills, seed, folder)
    except TooShort:
        raise
    except (NotCertified, CorruptCheckpoint) as failure:
        is_kept = True
        raise NotCertified(f"{failure}\nboth runs are kept in {folder}") from None
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}") from None
    finally:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)


def _certify(config: str, overrides: Sequence[str], num_kills: int, seed: int, folder: Path) -> str:
    draw, is_quiet = random.Random(seed), not sys.stderr.isatty()
    with tqdm(total=num_kills, unit="kill", leave=False, disable=is_quiet) as bar:
        bar.set_description("straight run")
        pace = run_straight(config, overrides, folder / "straight")
        kills = plan(num_kills, pace.epoch_ends, draw)
        killed = KilledRun(folder, pace, kills, draw)
        for number, kill in enumerate(kills):
            bar.set_description(f"{kill.signal.name} in {kill.moment}")
            killed.attempt(number)
            bar.update()
        bar.set_description("to the end")
        killed.finish()
    shown = killed.describe()
    if differences := first_differences(folder / "straight", folder / "killed"):
        lines = "".join(f"\n  {line}" for line in differences)
        raise NotCertified(f"{shown}: straight and killed run differ (--seed {seed}):{lines}")
    state = _parts(final_state(folder / "killed"))
    parts = ", ".join(name for name, value in state.items() if isinstance(value, dict))
    rows = f"{len(pace.epoch_ends)} rows of stats"
    return f"{shown}: {parts} and {rows} are equal, byte for byte"


# ---- Processes ---------------------------------------------------------------------------


@contextmanager
def running(config: str | Path, overrides: Sequence[str], folder: Path) -> Iterator[Child]:
    """train.py into that folder, what it prints in a file beside it. It does not outlive this."""
    more = [f"output_dir={json.dumps(str(folder))}", "keep_state=true", "save_plot=false"]
    with open(folder.with_suffix(".out"), "wb") as output:
        child = start([str(config), *overrides, *more], output)
    try:
        yield child
    finally:
        send(child, signal.SIGKILL)
        child.wait()


def start(arguments: Sequence[str], output: BinaryIO) -> Child:
    """train.py with these arguments, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(TRAIN), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for us alone
    )


def send(child: Child, number: signal.Signals) -> None:
    """Signal the child and its worker processes, as Slurm does."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def wait(child: Child, until: Callable[[], bool] = lambda: False) -> bool:
    """Wait until that is true; False where the child ended before."""
    while child.poll() is None:
        if until():
            return True
        time.sleep(POLL_INTERVAL)
    return False


def after(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() >= deadline


def end_of_output(folder: Path) -> str:
    lines = folder.with_suffix(".out").read_text(errors="replace").splitlines()
    return "\n".join(lines[-LINES_SHOWN:])


def run_straight(config: str, overrides: Sequence[str], folder: Path) -> Pace:
    """Without a kill. Raises UserError or NotCertified, with the end of its output."""
    started = time.monotonic()
    with running(config, overrides, folder) as child:
        wait(child, (folder / "config.yaml").exists)  # written when all is set up
        set_up = time.monotonic()
        wait(child)
    if child.returncode == 2:
        raise UserError(end_of_output(folder))
    if child.returncode:
        raise NotCertified(f"straight run: exit code {child.returncode}:\n{end_of_output(folder)}")
    rows = final_state(folder)["parts"]["stats"]["rows"]
    columns = [{c: x for c, x in row.items() if metric_name(c) == "time"} for row in rows]
    evaluations = [sum(of.values()) - of["train/time"] for of in columns]
    return Pace(
        startup=set_up - started,
        evaluation=median(evaluations or [0.0]),
        epoch_ends=[row["step"] for row in rows],
    )


class KilledRun:
    """One that is killed again and again; its state is saved as often as the disk allows."""

    def __init__(self, folder: Path, pace: Pace, kills: list[Kill], draw: random.Random) -> None:
        self.folder, self.pace, self.kills, self.draw = folder / "killed", pace, kills, draw
        # with the seeds that the straight run has drawn
        self.config = folder / "straight" / "config.yaml"
        self.files = CheckpointFiles(self.folder / "state")
        self.log = self.folder / "training.log"
        self.hits: Counter[str] = Counter()

    def attempt(self, number: int) -> None:
        """Killed for the number-th time, from 0. Raises NotCertified where it ends otherwise."""
        kill, saved, torn = self.kills[number], self.saved_step(), self.torn()
        with self._running() as child:
            moment = self._wait_for_moment(child, kill, saved, torn)
            has_died = child.poll() is not None
            send(child, kill.signal)
            if wait(child, after(SECONDS_TO_END)):
                raise NotCertified(
                    f"{kill.signal.name}: still running after {SECONDS_TO_END:.0f} s"
                )
        if child.returncode == 0 or (self.folder / "done").exists():
            raise TooShort(f"the run ended after {number} kills", len(self.kills))
        # where the handlers do not stand yet, the signal itself ends it
        expected = {-kill.signal, -kill.signal if kill.signal == signal.SIGKILL else STOPPED}
        if has_died or child.returncode not in expected:
            raise self._failure(f"attempt {number + 1}, {kill.signal.name}", child)
        self.hits[WRITING if self.torn() - torn else moment] += 1

    def finish(self) -> None:
        with self._running() as child:
            wait(child)
        if child.returncode:
            raise self._failure("last attempt", child)

    def describe(self) -> str:
        counts = Counter(kill.signal.name.removeprefix("SIG") for kill in self.kills)
        signals = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        hits = ", ".join(f"{self.hits[m]} in {m}" for m in MOMENTS if self.hits[m])
        return f"{len(self.kills)} kills ({signals}; {hits})"

    def saved_step(self) -> int:
        paths = self.files.paths()
        return int(paths[0].stem) if paths else 0

    def torn(self) -> set[Path]:
        """State files that are being written, or were when it was killed."""
        return set((self.folder / "state").glob(".*.state.*"))

    def _running(self) -> AbstractContextManager[Child]:
        return running(self.config, ["checkpoint_minutes=1e-9"], self.folder)

    def _failure(self, what: str, child: Child) -> NotCertified:
        return NotCertified(f"{what}: exit code {child.returncode}:\n{end_of_output(self.folder)}")

    def _wait_for_moment(self, child: Child, kill: Kill, saved: int, torn: set[Path]) -> str:
        """Until it should be killed, or has ended; the moment that it is."""
        if kill.moment == STARTUP:
            is_time = after(self.draw.uniform(0, self.pace.startup))
            # the straight run may have started on a busier machine, and this one be under way
            wait(child, lambda: is_time() or self.saved_step() != saved)
            return STARTUP if self.saved_step() == saved else TRAINING
        wait(child, lambda: self.saved_step() > max(saved, kill.step))
        if kill.moment == EVALUATION and self.saved_step() < self.pace.epoch_ends[-2]:
            read_from = self.log.stat().st_size
            wait(child, lambda: self._has_ended_an_epoch(read_from))
            wait(child, after(self.draw.uniform(0, self.pace.evaluation)))
            return EVALUATION
        # a state was renamed this very moment: all others must have their turn as well
        wait(child, after(self.draw.uniform(0, self._seconds_to_next_state(child))))
        if kill.moment == WRITING:
            wait(child, lambda: bool(self.torn() - torn))
        return TRAINING

    def _seconds_to_next_state(self, child: Child) -> float:
        """Measured by waiting for it, as the machine may be busier than in the straight run."""
        began, last = time.monotonic(), self.saved_step()
        wait(child, lambda: self.saved_step() != last)
        return time.monotonic() - began

    def _has_ended_an_epoch(self, read_from: int) -> bool:
        with open(self.log, "rb") as log:
            log.seek(read_from)
            steps = re.findall(rb"\| step (\d+)/", log.read())
        return any(int(step) in self.pace.epoch_ends for step in steps)


# ---- Where two run folders first differ --------------------------------------------------

# What a state holds besides results: the requested config, and seconds
NOT_RESULTS = {"config", "data_time", "training_seconds", "run_seconds", "num_processes"}
NAMES = {"model": "weights", "generators": "random generators"}


def first_differences(folder: Path, other: Path) -> list[str]:
    """One line for each part in which the runs differ; [] where they are equal."""
    states = final_state(folder), final_state(other)
    parts, other_parts = (_parts(state) for state in states)
    found = [
        first_difference(parts.get(name), other_parts.get(name), name)
        for name in parts | other_parts
    ]
    rows, other_rows = (state["parts"]["stats"]["rows"] for state in states)
    found.append(
        first_difference_of_rows(rows, other_rows, "stats")
        or first_difference_of_rows(_rows(folder), _rows(other), "stats.csv")
    )
    arrays = [
        {column: torch.from_numpy(np.array(x)) for column, x in Stats.read_arrays(place).items()}
        for place in (folder, other)
    ]
    found.append(first_difference(arrays[0], arrays[1], "arrays"))
    found.append(_difference_of_checkpoints(folder / "checkpoints", other / "checkpoints"))
    return [line for line in found if line]


def final_state(folder: Path) -> dict[str, Any]:
    """The newest state of a run folder. Raises CorruptCheckpoint."""
    newest = next(iter(CheckpointFiles(folder / "state").paths()), folder / "state")
    try:
        return read_state(newest)
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"{newest} {error}") from None


def _parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared as it is; the stats hold times, and have their own comparison."""
    own = {key: value for key, value in state.items() if key not in {*NOT_RESULTS, "parts"}}
    parts = {key: value for key, value in state["parts"].items() if key != "stats"}
    return {NAMES.get(key) or key: value for key, value in (parts | own).items()}


# ---- Trees of tensors and plain values ---------------------------------------------------


def first_difference(value: Any, other: Any, path: str = "") -> str | None:
    """Where two trees of dicts, lists, tensors and plain values first differ; None: nowhere."""
    if type(value) is not type(other):
        return f"{path}: {_short(value)} and {_short(other)}"
    if isinstance(value, Tensor):
        return _difference_of_tensors(value, other, path)
    if isinstance(value, Mapping):
        if list(value) != list(other):
            only = [str(key) for key in value.keys() ^ other.keys()] or ["their order"]
            return f"{path}: the names differ in {', '.join(sorted(only))}"
        return _first(first_difference(value[key], other[key], f"{path} {key}") for key in value)
    if isinstance(value, list | tuple):
        if len(value) != len(other):
            return f"{path}: {len(value)} and {len(other)} entries"
        pairs = enumerate(zip(value, other, strict=True))
        return _first(first_difference(*pair, f"{path} {i}") for i, pair in pairs)
    # repr() of a number gives all its digits
    return None if repr(value) == repr(other) else f"{path}: {value!r} and {other!r}"


def _first(found: Iterable[str | None]) -> str | None:
    return next(filter(None, found), None)


def _difference_of_tensors(tensor: Tensor, other: Tensor, path: str) -> str | None:
    kinds = [f"{x.dtype} {tuple(x.shape)}".removeprefix("torch.") for x in (tensor, other)]
    if kinds[0] != kinds[1]:
        return f"{path}: {kinds[0]} and {kinds[1]}"
    differing = (_bytes(tensor) != _bytes(other)).any(dim=1).nonzero().flatten()
    if not len(differing):
        return None
    first = int(differing[0])
    index = [int(i) for i in np.unravel_index(first, tensor.shape)] if tensor.ndim else ""
    values = [x.reshape(-1)[first].item() for x in (tensor, other)]
    count = f"{len(differing)} of {tensor.numel()} values differ"
    return f"{path}{index}: {values[0]!r} and {values[1]!r}; {count}"


def _bytes(tensor: Tensor) -> Tensor:
    """(number of values, bytes a value) uint8"""
    return tensor.reshape(-1, 1).contiguous().view(torch.uint8)


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | None) else type(value).__name__


# ---- Stats and checkpoints ---------------------------------------------------------------


def first_difference_of_rows(
    rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], name: str
) -> str | None:
    """Where two tables of stats first differ: the epoch, the column and both values."""
    for row, other in zip(rows, others, strict=False):
        if line := first_difference(_without_times(row), _without_times(other), ""):
            return f"{name}: epoch {row['epoch']},{line}"
    if len(rows) != len(others):
        return f"{name}: {len(rows)} and {len(others)} rows"
    return None


def _without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    return {column: x for column, x in row.items() if not is_time(column)}


def _rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "stats.csv", newline="") as file:
        return list(csv.DictReader(file))


def _difference_of_checkpoints(folder: Path, other: Path) -> str | None:
    names = [sorted(path.name for path in place.glob("*.pt")) for place in (folder, other)]
    if names[0] != names[1]:
        return f"checkpoints: {', '.join(sorted({*names[0]} ^ {*names[1]}))} on one side only"
    return _first(first_difference(_load(folder / x), _load(other / x), x) for x in names[0])


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)
