"""The run folder: everything that a run leaves behind, and the null object for no folder.

spec.yaml        the requested configuration
config.yaml      the resolved one, with all that was inferred or drawn
training.log     lines of progress; the traceback of a run that died
training.rankN.log         warnings and the traceback of another process than the main one
stats.csv        one row an epoch
arrays/          what was measured as arrays, a file a column (src/logging/records.py)
system.csv       what the run uses of the machine, every few seconds (src/logging/machine_use.py)
status.json      state, progress and time left, rewritten while the run goes
provenance.json  commit, packages, command, machine; uncommitted.diff beside it
curves.png       the learning curves
trace.json.gz    where the time goes in a few steps, where that was requested
trackers/        what was logged to trackers, and what is kept offline for them
state/           what the run resumes from (src/runtime/checkpoints.py)
checkpoints/     weights, where they were requested
earlier-N/       stats and weights of a run that was here before, and was not resumed
claim            the lease: who runs here now (src/logging/lease.py)
done             what ended the run, and why; there only if it ended by itself

A run removes and replaces files of these exact names alone, and only in a folder that a sign
shows to be a run's: what somebody else has put there stays.
"""

import json
import os
import platform
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import count, islice
from math import inf
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from loguru import logger

from src.config import Config
from src.logging.lease import Lease
from src.logging.machine_use import CostMeter, MachineUse, Uses
from src.logging.provenance import write_provenance
from src.logging.records import ARRAY_FILE, ARRAYS, Log, Progress, append_arrays
from src.logging.same_run import (
    SIGNS,
    OtherRun,
    is_finished,
    is_run_folder,
    read_json,
    resumed_config,
    write_errors,
)
from src.logging.tracker_processes import TrackerProcesses, tracker_names
from src.logging.trackers import SERVICES
from src.support import ROOT, UserError, processes, write_atomically

if TYPE_CHECKING:
    import pandas as pd

SECONDS_BETWEEN_STATUS = 2.0  # every 10 steps of a linear model would cost more than they
CARRIED = ("step", "num_steps", "progress", "epoch", "seconds_before")  # from attempt to attempt

FILES = (
    *SIGNS,
    *("config.yaml", "training.log", "stats.csv", "system.csv", "provenance.json"),
    *("uncommitted.diff", "curves.png", "trace.json.gz", "done"),
)
FOLDERS = ("checkpoints", "state", "trackers", ARRAYS)
RESULT = re.compile(r"stats\.csv|curves\.png|trace\.json\.gz|system(\.\d+)?\.csv")
CHECKPOINT = re.compile(r"epoch_\d{4,}\.pt|best\.pt")
TRACKER_FILE = re.compile(rf"id|({'|'.join(SERVICES)})\.(json|log|lock)")
TRACKER_FOLDER = re.compile(rf"({'|'.join(SERVICES)})(-online)?")
# What a process that was killed while it wrote has left: .NAME.PID
_ATOMIC = "|".join(map(re.escape, (*FILES, "attempts.json", "trace.json")))
TORN = re.compile(rf"\.({_ATOMIC})\.\d+")
TORN_CHECKPOINT = re.compile(rf"\.({CHECKPOINT.pattern})\.\d+")
MOST_LOOKED_AT = 1_000  # entries of a folder, which may hold millions


class RunFolder:
    """A context: opened when a run starts, closed however it ends. Without an output_dir it
    writes nothing.

    Raises UserError where the folder cannot be written, another process runs in it, or it
    holds a finished run that the configuration does not make longer.
    """

    def __init__(self, config: Config, rank: int = 0, place: tuple[int, int] | None = None) -> None:
        """config: the requested one. rank: of several processes only 0 writes; warnings of the
        others go into training.rankN.log. place: (its number from 0, how many) of runs that this
        process trains together: the first one alone has a bar, and takes samples of the machine."""
        self.requested, self.rank, self.place = config, rank, place
        self.is_first = not (place and place[0])
        folder = None if config.output_dir is None else Path(config.output_dir)
        self.path = None if rank else folder
        self.log_path = folder and folder / (f"training.rank{rank}.log" if rank else "training.log")
        self.lease = Lease(self.path or Path())  # never taken where nothing is written
        self.ensure_ours = self.lease.ensure  # raises LeaseLost
        self.state: dict[str, Any] = {"state": "running", "pid": os.getpid(), "error": None}
        self.facts: Callable[[], dict[str, Any]] = dict
        self.is_resumed = False
        self.next_status = 0.0
        self.configs: dict[str, Any] = {}  # requested and resolved, as plain values
        self.stats_text: str | None = None  # that could not be written yet
        self.earlier_status = ""  # status.json as the attempt before has left it
        self.machine_use = MachineUse(self.lease.is_held)
        self.trackers = TrackerProcesses()

    # ---- Opening and closing -------------------------------------------------------------

    def __enter__(self) -> "RunFolder":
        try:
            with write_errors(self.path):
                if self.path:
                    self._take(self.path)
                self.log = Log(
                    self.log_path,
                    to_terminal=self.requested.log_to_stdout,
                    may_write=self.lease.is_held,
                    rank=self.rank,
                )
        except BaseException:
            self.lease.release()
            raise
        self.progress = Progress(self.rank, is_shown=self.is_first)
        if self.path:
            where = f" of job {self.state['job']}" if self.state["job"] else ""
            logger.info("attempt {} on {}{}", self.state["attempt"], self.state["host"], where)
        return self

    def _take(self, path: Path) -> None:
        """Make the folder ours, or refuse."""
        check_run_folder(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except ValueError as error:  # a zero byte in it
            raise UserError(f"output_dir: cannot write to {str(path)!r}: {error}") from None
        self.lease.take()
        is_ended, has_stats = ((path / name).exists() for name in ("done", "stats.csv"))
        if is_ended and (is_finished(self.requested) or not has_stats):
            raise UserError(f"output_dir: {path} holds a finished run; choose another or delete it")
        for torn in (*_files(path, TORN), *_files(path / "checkpoints", TORN_CHECKPOINT)):
            torn.unlink(missing_ok=True)
        earlier = read_json(path / "status.json")
        numbers = [earlier.get(key, 0) for key in ("attempt", *CARRIED)]
        if not all(isinstance(x, int | float) and abs(x) < inf for x in numbers):
            earlier = {}  # damaged
        self.earlier_status = (path / "status.json").read_text() if earlier else ""
        self.meter = CostMeter(earlier)
        self.state |= {"host": platform.node(), "job": processes.slurm_job(), "started": _now()}
        self.state |= {key: earlier[key] for key in CARRIED if key in earlier}
        self.state["attempt"] = earlier.get("attempt", 0) + 1
        self.state["seconds_to_start"] = round(self.meter.start_up, 2)
        self._write_status()  # before other files: it is what shows that they are ours

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Record how it ended: in the status, and a traceback in the log if it died."""
        self.progress.close()
        try:
            self.machine_use.stop()
            if isinstance(error, GeneratorExit):
                self.state["state"] = "left"
                logger.info("left early by the program that ran it")
            elif isinstance(error, KeyboardInterrupt):
                name = signal.Signals(getattr(error, "signal", signal.SIGINT)).name
                is_ctrl_c = name == "SIGINT"
                self.state |= {"state": "interrupted" if is_ctrl_c else "stopped", "signal": name}
                logger.info("interrupted" if is_ctrl_c else f"stopped by {name}")
            elif error is not None:
                self.state |= {"state": "failed", "error": f"{type(error).__name__}: {error}"}
                traced = None if isinstance(error, UserError) else error
                logger.opt(exception=traced).error(self.state["error"])
            if self.path and isinstance(error, OtherRun) and self.earlier_status:
                write_atomically(self.path / "status.json", self.earlier_status, durable=False)
            else:
                self.update_status(is_urgent=True)
            self.trackers.close(is_stopped=isinstance(error, KeyboardInterrupt | GeneratorExit))
        finally:
            self.log.close()
            self.lease.release()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the caller has the turn, its log lines are not ours."""
        self.log.is_paused = True
        try:
            yield
        finally:
            self.log.is_paused = False

    # ---- What is decided while the run is set up -----------------------------------------

    def resume(self, saved: Mapping[str, Any]) -> Config:
        """An earlier attempt's state resumes: the resolved configuration from now on, with what
        was drawn and inferred then. saved: the configurations in that state. Raises OtherRun."""
        self.is_resumed = True
        return resumed_config(self.requested, saved)

    def check_data(self, config: Config, num_examples: dict[str, int]) -> None:
        """A config.yaml that runs again should meet the data that it met before; a state must.

        num_examples: split -> number. Raises OtherRun.
        """
        if config.data_n_examples not in (None, num_examples):
            words = f"data_n_examples: was {config.data_n_examples}, now {num_examples}"
            if self.is_resumed:
                words += "; a run cannot resume with other data; choose another folder"
                raise OtherRun(words)
            logger.warning(words)

    def check_epochs(
        self, epoch_end: Callable[[int], int], num_steps: int, rows: Sequence[Mapping]
    ) -> None:
        """A run that is made longer must have ended with a whole epoch. Raises OtherRun.

        epoch_end: epoch -> the step after which it ends. rows: of the stats so far.
        """
        last = rows[-1] if rows else {"epoch": 0, "step": 0}
        if last["step"] < num_steps and last["step"] != epoch_end(last["epoch"]):
            raise OtherRun(
                f"train_length: the run ended at step {last['step']}, in the middle of epoch "
                f"{last['epoch']}, which a longer run would not have; choose another output_dir"
            )

    def start(
        self, resolved: Config, *, facts: Callable[[], dict[str, Any]], uses: Uses | None = None
    ) -> None:
        """Everything is set up: our configuration, and the end of what an attempt left that this
        one does not resume. spec.yaml stays as a submission has written it.

        facts: what status.json says of the progress, read whenever it is written.
        """
        requested, path, uses = self.requested, self.path, uses or Uses()
        uses = replace(uses, num_runs=self.place[1]) if self.place else uses
        self.facts = facts
        self.configs = {"asked": asdict(requested), "in_force": asdict(resolved)}
        if not path:
            return
        self.state |= facts()
        self.meter.start(int(self.state.get("step", 0)), uses)
        if (path / "done").exists() and not self.is_resumed:
            words = "holds a finished run and no state/ of it; choose another"
            raise OtherRun(f"output_dir: {path} {words}")
        (path / "done").unlink(missing_ok=True)
        with write_errors(path):
            spec, is_same_spec = path / "spec.yaml", False
            with suppress(UserError):  # a damaged one is replaced
                is_same_spec = spec.exists() and Config.read(spec) == requested
            if not self.is_resumed:
                _put_earlier_run_aside(path)
                # From scratch with other draws it is another run, to trackers as well.
                if not is_same_spec or None in (requested.seed_model, requested.seed_training):
                    _remove_tracked(path / "trackers")
            if not is_same_spec:
                requested.save(spec)
            resolved.save(path / "config.yaml")
            differences = write_provenance(path, self.place)
        for difference in differences if self.is_resumed else ():
            logger.warning("resumes with other means: {}", difference)
        interval, num_workers = resolved.system_interval, resolved.num_workers
        if not self.is_first:
            interval = 0.0
        self.machine_use.start(path / "system.csv", interval, uses, num_workers)
        self.trackers.start(path, tracker_names(resolved))

    # ---- Writing -------------------------------------------------------------------------

    def _ours(self) -> Path | None:
        """The folder to write to. Raises LeaseLost where another process has taken it."""
        self.lease.ensure()
        return self.path

    def change_config(self, resolved: Config) -> None:
        """The resolved configuration has changed since start(): something was inferred in
        training."""
        self.configs["in_force"] = asdict(resolved)
        if path := self._ours():
            with write_errors(path):
                resolved.save(path / "config.yaml")

    def save_stats(self, frame: "pd.DataFrame", of_epoch: Mapping[str, Any] | None = None) -> None:
        """A disk that is full is reported; the file of before stays, and the run continues.

        of_epoch: column -> array, of the last row.
        """
        if path := self._ours():
            is_first, self.stats_text = self.stats_text is None, frame.to_csv()
            try:
                append_arrays(path, len(frame) - 1, of_epoch or {})
                self._write_stats(path)
            except OSError as error:
                if is_first:
                    words = "cannot write to {}/stats.csv: {}; trying again every epoch"
                    logger.warning(words, path, error.strerror)
            self.trackers.check()

    def _write_stats(self, path: Path) -> None:
        if self.stats_text is not None:
            write_atomically(path / "stats.csv", self.stats_text)
            self.stats_text = None

    def checkpoint(self, name: str) -> Path | None:
        """Where the weights of that name belong; None where nothing is written."""
        path = self._ours()
        return path / "checkpoints" / f"{name}.pt" if path else None

    def update_status(self, *, is_urgent: bool = False) -> None:
        """Rewrite status.json, every few seconds at most. A full disk must not end a run here."""
        if is_urgent or monotonic() >= self.next_status:
            try:
                self._write_status()
            except OSError as error:
                logger.debug("status.json: {}", error.strerror)

    def _write_status(self) -> None:
        if path := self._ours():
            self.next_status = monotonic() + SECONDS_BETWEEN_STATUS
            self.state |= self.facts()
            self.state |= self.meter.status(int(self.state.get("step", 0)))
            text = json.dumps(self.state | {"updated": _now()}, indent=1)
            write_atomically(path / "status.json", text, durable=False)

    def finish(self, outcome: str, reason: str) -> None:
        """The run ended by itself: outcome is finished, early_stopped or diverged.

        Raises UserError, and leaves no `done`, where the disk refuses what belongs to it.
        """
        level = "INFO" if outcome == "finished" else "WARNING"  # those reach the terminal
        logger.log(level, "{}: {}", outcome, reason)
        if path := self._ours():
            end = {"outcome": outcome, "reason": reason, "time": _now(), **self.facts()}
            end |= self.configs
            with write_errors(path):
                self._write_stats(path)
                write_atomically(path / "done", json.dumps(end, indent=1) + "\n")
        self.state |= {"state": "done", "outcome": outcome, "reason": reason}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# ---- Which files are ours ----------------------------------------------------------------


def folders_in(folder: Path) -> Iterator[Path]:
    """The folders among the first entries of a folder; none where it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        yield from (Path(e.path) for e in islice(entries, MOST_LOOKED_AT) if e.is_dir())


def check_run_folder(folder: Path) -> None:
    """Raises UserError where a run must not write into this folder; changes nothing."""
    if not os.path.exists(folder):
        return
    if os.path.samefile(folder, ROOT):
        raise UserError(f"output_dir: {folder} is the repository; write output_dir=results/NAME")
    is_ours = is_run_folder(folder)
    if not is_ours:
        below = (path for child in folders_in(folder) for path in (child, *folders_in(child)))
        if run := next(filter(is_run_folder, below), None):
            such = f"folders of runs (such as {run.relative_to(folder)})"
            words = f"holds {such}; write output_dir={folder / 'NAME'}"
            raise UserError(f"output_dir: {folder} {words}")
    for name in (*FILES, *FOLDERS):
        if not os.path.lexists(folder / name):
            continue
        if not is_ours:
            words = f"is not the folder of a run, and its {name} is in the way; choose another"
            raise UserError(f"output_dir: {folder} {words}")
        kind, is_right = ("file", os.path.isfile) if name in FILES else ("folder", os.path.isdir)
        if not is_right(folder / name):
            words = f"is no {kind}, and a run has a {kind} there; move it away, or choose another"
            raise UserError(f"output_dir: {folder / name} {words}")


def _put_earlier_run_aside(folder: Path) -> None:
    """The stats and weights of a run that this one does not resume go to earlier-1, or the next
    free number. What a run has left that came to neither is removed."""
    results = [*_files(folder, RESULT), *_files(folder / ARRAYS, ARRAY_FILE)]
    checkpoints = _files(folder / "checkpoints", CHECKPOINT)
    if checkpoints or (folder / "stats.csv").is_file():
        earlier = next(p for n in count(1) if not (p := folder / f"earlier-{n}").exists())
        for path in (*results, *checkpoints, folder / "config.yaml"):
            if path.exists():
                target = earlier / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, target)
        words = "no saved state: the run starts from scratch; its earlier results are now in {}"
        logger.warning(words, earlier)
    else:
        for path in results:
            path.unlink()
    _remove_if_empty(folder / "checkpoints")
    _remove_if_empty(folder / ARRAYS)


def _remove_tracked(trackers: Path) -> None:
    """What was logged to trackers of another run."""
    for path in _files(trackers, TRACKER_FILE):
        path.unlink(missing_ok=True)
    for path in trackers.iterdir() if trackers.is_dir() else ():
        if TRACKER_FOLDER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    _remove_if_empty(trackers)


def _files(folder: Path, names: re.Pattern[str]) -> list[Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if names.fullmatch(path.name) and path.is_file()]


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds what is not ours, or is a link
        folder.rmdir()
