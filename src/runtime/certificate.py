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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import starmap
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.config import Config, load_config, make_config, read_yaml_file, write_yaml
from src.grid import read_job
from src.logging import Stats
from src.metrics import is_time, metric_name
from src.runtime.checkpoints import CheckpointFiles, CorruptCheckpoint, read_state
from src.stacking import is_linear, obstacle, stack_key
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
EAGER = ["checkpoint_minutes=1e-9"]  # its state is saved as often as the disk allows

Child = subprocess.Popen[bytes]


class NotCertified(Exception):  # noqa: N818 - the run has failed, not this program
    """The reason why there is no certificate; the folders of both runs are kept."""


class TooShort(NotCertified):
    """The run ends before all kills; nothing of it is of interest."""

    def __init__(self, what: str, num_kills: int) -> None:
        remedy = "take a longer train_length, or fewer --kills"
        super().__init__(f"{what}: too short for {num_kills} kills; {remedy}")


class Kill(NamedTuple):
    """A signal after a step, or in the start-up."""

    signal: signal.Signals
    moment: str
    step: float


class Pace(NamedTuple):
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

    config: of a run, or a job file, whose runs are then trained in stacks: see certify_stacks.
    seed: of the moments. output: a folder that keeps both runs; None: one that is removed, unless
    somebody must look at what is in it.
    """
    content = read_yaml_file(config)
    is_job = isinstance(content, dict) and "parameters" in content
    show = certify_stacks if is_job else certify_run
    folder = Path(output or tempfile.mkdtemp(prefix="verify_resume.")).absolute()
    is_kept = output is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UserError(f"--output: {folder} is not empty")
        with tqdm(total=num_kills, unit="kill", leave=False, disable=None) as bar:
            shown, what, lines = show(config, overrides, folder, random.Random(seed), bar)
        if lines:
            words = f"{shown}: straight and killed run differ (--seed {seed}):"
            raise NotCertified("\n  ".join([words, *lines]))
        return f"{shown}: {what} are equal, byte for byte"
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


Shown = tuple[str, str, list[str]]  # (the kills, what was compared, lines where it differs)


def certify_run(
    config: str, overrides: Sequence[str], folder: Path, draw: random.Random, bar: tqdm
) -> Shown:
    """In folder/straight and folder/killed. bar: of so many kills."""
    load_config(config, overrides)  # mistakes show before anything runs
    straight = folder / "straight"
    bar.set_description("straight run")
    pace = run_straight(config, overrides, straight)
    kills = plan(bar.total, pace.epoch_ends, draw)
    # with the seeds that the straight run has drawn
    killed = KilledRun(folder / "killed", straight / "config.yaml", pace, kills, draw)
    killed.to_the_end(bar)
    what = f"{', '.join(names_of_parts(killed.folder))} and {len(pace.epoch_ends)} rows of stats"
    return describe([killed]), what, first_differences(straight, killed.folder)


def certify_stacks(
    job: str, overrides: Sequence[str], folder: Path, draw: random.Random, bar: tqdm
) -> Shown:
    """The runs of a job file that can be stacked: each alone and straight through, in
    folder/straight/NNN, and all that may share a stack in one that is killed, in folder/killed."""
    stacks = stacks_of(job, overrides, bar.write)
    names = [name for stack in stacks for name in stack]
    paces: dict[str, Pace] = {}
    (folder / "straight").mkdir()
    (folder / "killed").mkdir()
    for name, config in (pair for stack in stacks for pair in stack.items()):
        bar.set_description(f"run {name} alone")
        config.save(folder / f"{name}.yaml")
        straight, killed = folder / "straight" / name, folder / "killed" / name
        paces[name] = run_straight(str(folder / f"{name}.yaml"), [], straight)
        # a stack takes its keys from the files of its runs alone, not from the command line
        keys = [*EAGER, f"output_dir={json.dumps(str(killed))}"]
        load_config(straight / "config.yaml", keys).save(folder / "killed" / f"{name}.yaml")
    runs = []
    for number, stack in enumerate(stacks):
        spec = folder / f"stack-{number + 1}.yaml"
        spec.write_text(write_yaml({"stack": [str(folder / f"killed/{n}.yaml") for n in stack]}))
        # One of those that are trained to the end tells how far the stack is.
        steps = {name: max(paces[name].epoch_ends, default=0) for name in stack}
        watched = draw.choice([name for name in stack if steps[name] == max(steps.values())])
        num_kills = bar.total // len(stacks) + (number < bar.total % len(stacks))
        kills = plan(num_kills, paces[watched].epoch_ends, draw) if num_kills else []
        runs.append(KilledRun(folder / "killed" / watched, spec, paces[watched], kills, draw))
    for run in runs:
        run.to_the_end(bar)
    both = [(folder / "straight" / name, folder / "killed" / name) for name in names]
    lines = [f"run {a.name}: {line}" for a, b in both for line in first_differences(a, b)]
    parts = dict.fromkeys(part for _, killed in both for part in names_of_parts(killed))
    each = f"{len(names)} run{'s' * (len(names) > 1)}"
    what = f"of {each} in {len(stacks)} stack{'s' * (len(stacks) > 1)}, and alone, "
    return describe(runs), f"{what}{', '.join(parts)} and stats", lines


def stacks_of(
    job: str, overrides: Sequence[str], report: Callable[[str], None]
) -> list[dict[str, Config]]:
    """The runs that may share a stack, numbers as their folders have them -> config. Others are
    reported, a line a reason. Raises UserError where there is no other."""
    stacks: dict[str, dict[str, Config]] = {}
    left_out: dict[str, list[str]] = {}
    for number, values in enumerate(read_job(job).runs()):
        config = make_config({"engine": "stacked", **values}, overrides)
        why = None if config.engine == "stacked" else "engine: ordinary is given"
        if not is_linear(config):
            why = why or "stacks of networks agree to rounding"
        if why := why or obstacle(config):
            left_out.setdefault(why, []).append(f"{number:03d}")
        else:
            stacks.setdefault(stack_key(config), {})[f"{number:03d}"] = config
    if not stacks:
        raise UserError(f"{job}: no run can be trained in a stack: {'; '.join(left_out)}")
    for why, names in left_out.items():
        report(f"left out, {', '.join(names)}: {why}")
    return list(stacks.values())


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


def wait(child: Child, until: Callable[[], bool] = lambda: False, seconds: float = inf) -> bool:
    """Wait until that is true, or so long; False where the child ended before."""
    deadline = time.monotonic() + seconds
    while child.poll() is None:
        if until() or time.monotonic() >= deadline:
            return True
        time.sleep(POLL_INTERVAL)
    return False


def failure(what: str, child: Child, folder: Path) -> NotCertified:
    """The exit code of a run and the end of what it printed."""
    return NotCertified(f"{what}: exit code {child.returncode}:\n{end_of_output(folder)}")


def end_of_output(folder: Path) -> str:
    lines = folder.with_suffix(".out").read_text(errors="replace").splitlines()
    return "\n".join(lines[-LINES_SHOWN:])


def run_straight(config: str, overrides: Sequence[str], folder: Path) -> Pace:
    """Without a kill. Raises UserError or NotCertified, with the end of its output."""
    started = time.monotonic()
    with running(config, overrides, folder) as child:
        wait(child, (folder / "config.yaml").exists)  # written when all is set up
        startup = time.monotonic() - started
        wait(child)
    if child.returncode == 2:
        raise UserError(end_of_output(folder))
    if child.returncode:
        raise failure("straight run", child, folder)
    rows = final_state(folder)["parts"]["stats"]["rows"]
    columns = [{c: x for c, x in row.items() if metric_name(c) == "time"} for row in rows]
    evaluations = [sum(of.values()) - of["train/time"] for of in columns]
    return Pace(startup, median(evaluations or [0.0]), [row["step"] for row in rows])


class KilledRun:
    """One that is killed again and again."""

    def __init__(
        self, folder: Path, config: Path, pace: Pace, kills: Sequence[Kill], draw: random.Random
    ) -> None:
        """config: what train.py is started with, of this run or of a stack that it is in."""
        self.folder, self.config, self.pace = folder, config, pace
        self.kills, self.draw = kills, draw
        self.files = CheckpointFiles(self.folder / "state")
        self.log = self.folder / "training.log"
        self.hits: Counter[str] = Counter()

    def to_the_end(self, bar: tqdm) -> None:
        """With all kills, each an update of the bar."""
        for number, kill in enumerate(self.kills):
            bar.set_description(f"{kill.signal.name} in {kill.moment}")
            self.attempt(number)
            bar.update()
        bar.set_description("to the end")
        with running(self.config, EAGER, self.folder) as child:
            wait(child)
        if child.returncode:
            raise failure("last attempt", child, self.folder)

    def attempt(self, number: int) -> None:
        """Killed for the number-th time, from 0. Raises NotCertified where it ends otherwise."""
        kill, torn = self.kills[number], self.torn()
        with running(self.config, EAGER, self.folder) as child:
            moment = self._wait_for_moment(child, kill, torn)
            has_died = child.poll() is not None
            send(child, kill.signal)
            if wait(child, seconds=SECONDS_TO_END):
                words = f"still running after {SECONDS_TO_END:.0f} s"
                raise NotCertified(f"{kill.signal.name}: {words}")
        if child.returncode == 0 or (self.folder / "done").exists():
            raise TooShort(f"the run ended after {number} kills", len(self.kills))
        # where the handlers do not stand yet, the signal itself ends it
        expected = {-kill.signal, -kill.signal if kill.signal == signal.SIGKILL else STOPPED}
        if has_died or child.returncode not in expected:
            raise failure(f"attempt {number + 1}, {kill.signal.name}", child, self.folder)
        self.hits[WRITING if self.torn() - torn else moment] += 1

    def saved_step(self) -> int:
        paths = self.files.paths()
        return int(paths[0].stem) if paths else 0

    def torn(self) -> set[Path]:
        """State files that are being written, or were when it was killed."""
        return set((self.folder / "state").glob(".*.state.*"))

    def _wait_for_moment(self, child: Child, kill: Kill, torn: set[Path]) -> str:
        """Until it should be killed, or has ended; the moment that it is. torn: before it began."""
        saved, draw = self.saved_step(), self.draw.uniform
        if kill.moment == STARTUP:
            # the straight run may have started on a busier machine, and this one be under way
            wait(child, lambda: self.saved_step() != saved, draw(0, self.pace.startup))
            return STARTUP if self.saved_step() == saved else TRAINING
        wait(child, lambda: self.saved_step() > max(saved, kill.step))
        if kill.moment == EVALUATION and self.saved_step() < self.pace.epoch_ends[-2]:
            read_from = self.log.stat().st_size

            def has_ended_an_epoch() -> bool:
                with open(self.log, "rb") as log:
                    log.seek(read_from)
                    steps = re.findall(rb"\| step (\d+)/", log.read())
                return any(int(step) in self.pace.epoch_ends for step in steps)

            wait(child, has_ended_an_epoch)
            wait(child, seconds=draw(0, self.pace.evaluation))
            return EVALUATION
        # A state was renamed this very moment: all others must have their turn as well. How long
        # until the next is measured by waiting for it, as the machine may be busier than before.
        began, last = time.monotonic(), self.saved_step()
        wait(child, lambda: self.saved_step() != last)
        wait(child, seconds=draw(0, time.monotonic() - began))
        if kill.moment == WRITING:
            wait(child, lambda: bool(self.torn() - torn))
        return TRAINING


def describe(runs: Sequence[KilledRun]) -> str:
    """Their kills: how many of which signal, and at which moments."""
    kills, hits = [kill for run in runs for kill in run.kills], Counter[str]()
    for run in runs:
        hits += run.hits
    counts = Counter(kill.signal.name.removeprefix("SIG") for kill in kills)
    signals = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    moments = ", ".join(f"{hits[m]} in {m}" for m in MOMENTS if hits[m])
    return f"{len(kills)} kills ({signals}; {moments})"


# ---- Where two run folders first differ --------------------------------------------------

# What a state holds besides results: the requested config, and seconds
NOT_RESULTS = {"config", "data_time", "training_seconds", "run_seconds", "num_processes"}
NAMES = {"model": "weights", "generators": "random generators"}


def first_differences(folder: Path, other: Path) -> list[str]:
    """One line for each part in which the runs differ; [] where they are equal."""
    runs = folder, other
    states = [final_state(run) for run in runs]
    parts, other_parts = map(_parts, states)
    found = [
        first_difference(parts.get(name), other_parts.get(name), name)
        for name in parts | other_parts
    ]
    rows, other_rows = (_without_times(state["parts"]["stats"]["rows"]) for state in states)
    in_files, other_in_files = (_without_times(_read_rows(run)) for run in runs)
    found.append(
        _difference_of_rows(rows, other_rows, "stats")
        or _difference_of_rows(in_files, other_in_files, "stats.csv")
    )
    arrays = [
        {column: torch.from_numpy(np.array(x)) for column, x in Stats.read_arrays(run).items()}
        for run in runs
    ]
    found.append(first_difference(arrays[0], arrays[1], "arrays"))
    names = [{path.name for path in (run / "checkpoints").glob("*.pt")} for run in runs]
    if only := ", ".join(sorted(names[0] ^ names[1])):
        found.append(f"checkpoints: {only} on one side only")
    for name in sorted(names[0] & names[1]) if not only else ():
        weights = [
            torch.load(run / "checkpoints" / name, map_location="cpu", weights_only=True)
            for run in runs
        ]
        found.append(first_difference(weights[0], weights[1], name))
    return [line for line in found if line]


def final_state(folder: Path) -> dict[str, Any]:
    """The newest state of a run folder. Raises CorruptCheckpoint."""
    newest = next(iter(CheckpointFiles(folder / "state").paths()), folder / "state")
    try:
        return read_state(newest)
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"{newest} {error}") from None


def names_of_parts(folder: Path) -> list[str]:
    """What of its last state is compared: weights, optimizer, …"""
    parts = _parts(final_state(folder))
    return [name for name, value in parts.items() if isinstance(value, dict)]


def _parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """What is compared as it is; the stats hold times, and have their own comparison."""
    own = {key: value for key, value in state.items() if key not in {*NOT_RESULTS, "parts"}}
    parts = {key: value for key, value in state["parts"].items() if key != "stats"}
    return {NAMES.get(key) or key: value for key, value in (parts | own).items()}


def _read_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "stats.csv", newline="") as file:
        return list(csv.DictReader(file))


def _without_times(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{column: x for column, x in row.items() if not is_time(column)} for row in rows]


def _difference_of_rows(rows: Sequence[Any], others: Sequence[Any], name: str) -> str | None:
    """Where two tables of stats first differ: the epoch, the column and both values."""
    for row, other in zip(rows, others, strict=False):
        if line := first_difference(row, other):
            return f"{name}: epoch {row['epoch']},{line}"
    return None if len(rows) == len(others) else f"{name}: {len(rows)} and {len(others)} rows"


def first_difference(value: Any, other: Any, path: str = "") -> str | None:
    """Where two trees of dicts, lists, tensors and plain values first differ; None: nowhere."""
    if type(value) is not type(other):
        is_shown = str | int | float | None
        shown = [repr(x) if isinstance(x, is_shown) else type(x).__name__ for x in (value, other)]
        return f"{path}: {shown[0]} and {shown[1]}"
    if isinstance(value, Tensor):
        return _difference_of_tensors(value, other, path)
    if isinstance(value, Mapping):
        if list(value) != list(other):
            only = [str(key) for key in value.keys() ^ other.keys()] or ["their order"]
            return f"{path}: the names differ in {', '.join(sorted(only))}"
        parts = [(value[key], other[key], f"{path} {key}") for key in value]
    elif isinstance(value, list | tuple):
        if len(value) != len(other):
            return f"{path}: {len(value)} and {len(other)} entries"
        parts = [(*both, f"{path} {i}") for i, both in enumerate(zip(value, other, strict=True))]
    else:  # repr() of a number gives all its digits
        return None if repr(value) == repr(other) else f"{path}: {value!r} and {other!r}"
    return next(filter(None, starmap(first_difference, parts)), None)


def _difference_of_tensors(tensor: Tensor, other: Tensor, path: str) -> str | None:
    both = tensor, other
    kinds = [f"{x.dtype} {tuple(x.shape)}".removeprefix("torch.") for x in both]
    if kinds[0] != kinds[1]:
        return f"{path}: {kinds[0]} and {kinds[1]}"
    # (number of values, bytes a value)
    in_bytes = [x.reshape(-1, 1).contiguous().view(torch.uint8) for x in both]
    differing = (in_bytes[0] != in_bytes[1]).any(dim=1).nonzero().flatten().tolist()
    if not differing:
        return None
    index = [int(i) for i in np.unravel_index(differing[0], tensor.shape)] if tensor.ndim else ""
    values = [x.reshape(-1)[differing[0]].item() for x in both]
    count = f"{len(differing)} of {tensor.numel()} values differ"
    return f"{path}{index}: {values[0]!r} and {values[1]!r}; {count}"
