"""The processes that log runs to trackers: one a tracker, beside a run and for `report.py sync`.

A run starts them (TrackerProcesses), `report.py sync` sends later what was kept offline
(sync_runs), and log_run() is what such a process does: it logs the rows of stats.csv as they come,
reads nothing but the run folder, and ends when its standard input does, as the run has ended then,
however it did. So a tracker that is slow, offline or broken holds up nobody.

trackers/id           the run, for all trackers: the same one as long as its folder is
trackers/NAME.json    how much of the run a tracker has (SyncState)
trackers/NAME/        what is kept offline: each attempt rewrites it, with all rows so far
trackers/NAME.log     what the tracker's library prints
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic

import psutil
from filelock import FileLock
from loguru import logger
from tqdm import tqdm

from src.config import Config
from src.logging.lease import live_owner
from src.logging.same_run import read_json
from src.logging.trackers import Service, TrackedRun, load_service
from src.support import ROOT, UserError, one_line, write_atomically

FOLDER = "trackers"  # of a run folder
SECONDS_TO_END = 20.0  # after the run, before what is left waits for `report.py sync`
SECONDS_WHEN_STOPPED = 5.0  # by a signal: Slurm waits for us
SECONDS_PER_SYNC = 600.0  # of one run
SECONDS_FOR_ANOTHER = 60.0  # tracker process, which may still log an earlier attempt
SECONDS_BETWEEN_LOOKS = 1.0  # at stats.csv
# The run comes first. Where others keep all cores busy, such a process may never get a turn.
NICENESS = int(os.environ.get("EXPERIMENT_TRACKER_NICENESS", "19"))
NO_COMPUTE = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
LOGIN = {  # the trackers that are online
    "wandb": "call `wandb login` or set WANDB_API_KEY, and unset WANDB_MODE",
    "comet": "set COMET_API_KEY",
}


def tracker_names(config: Config) -> list[str]:
    """The trackers that the configuration names, each once."""
    return list(dict.fromkeys([*(["wandb"] * config.wandb), *config.trackers]))


@dataclass(frozen=True)
class SyncState:
    """trackers/NAME.json: how much of a run one tracker has, for whoever comes next."""

    is_online: bool = False
    is_complete: bool = False  # all rows and the end of the run were logged
    last_step: int = -1  # that was logged by this attempt
    confirmed: int = -1  # the last step that was sent, by whichever attempt
    problem: str | None = None

    @classmethod
    def read(cls, folder: Path, name: str) -> "SyncState":
        """Of a run folder; nothing was logged where there is no such file."""
        try:
            return cls(**read_json(folder / FOLDER / f"{name}.json"))
        except TypeError:
            return cls()

    def write(self, folder: Path, name: str) -> None:
        path = folder / FOLDER / f"{name}.json"
        write_atomically(path, json.dumps(asdict(self)) + "\n", durable=False)


# ---- Beside a run ------------------------------------------------------------------------


class TrackerProcesses:
    """Those of a run. Nothing that they do raises here."""

    def __init__(self) -> None:
        self.processes: dict[str, subprocess.Popen] = {}
        self.reported: set[str] = set()  # trackers whose problem is in the log

    def start(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        for name in names:
            try:
                (folder / FOLDER).mkdir(exist_ok=True)
                # What went wrong in an earlier attempt is not reported of this one.
                if (folder / FOLDER / f"{name}.json").exists():
                    state = SyncState.read(folder, name)
                    replace(state, problem=None, is_complete=False).write(folder, name)
                self.processes[name] = start_process(folder, name)
            except OSError as error:
                logger.warning("{}: this run is not logged to it: {}", name, error.strerror)

    def check(self) -> None:
        """Log once what is wrong with one of them."""
        for name, process in self.processes.items():
            code, problem = process.poll(), SyncState.read(self.folder, name).problem
            if name not in self.reported and (problem or code):
                self.reported.add(name)
                problem = problem or f"ended by itself ({code})"
                log = self.folder / FOLDER / f"{name}.log"
                logger.warning("{}: {}; the run continues without it ({})", name, problem, log)

    def close(self, *, is_stopped: bool = False) -> None:
        """The run has ended, and all its files are written."""
        for process in self.processes.values():
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
        until = monotonic() + (SECONDS_WHEN_STOPPED if is_stopped else SECONDS_TO_END)
        for name, process in self.processes.items():
            try:
                process.wait(max(0.0, until - monotonic()))
            except subprocess.TimeoutExpired:
                kill_with_children(process)
                self.reported.add(name)
                words = "{}: upload incomplete; python report.py sync {} sends the rest"
                logger.warning(words, name, self.folder)
        self.check()
        for name in (n for n in self.processes if n in LOGIN and n not in self.reported):
            if not SyncState.read(self.folder, name).is_online:
                words = "{}: kept offline; python report.py sync {} sends it"
                logger.info(words, name, self.folder)
        self.processes = {}


def start_process(folder: Path, name: str, *, must_be_online: bool = False) -> subprocess.Popen:
    """A process group of its own: signals to the run's are not for it. No session of its own,
    which Linux would give as much of the processor as the run's, however nice its processes are."""
    command = [sys.executable, "-m", "src.logging.tracker_processes", str(folder.resolve()), name]
    with open(folder / FOLDER / f"{name}.log", "ab") as log:
        return subprocess.Popen(
            command + ["--online"] * must_be_online,
            cwd=ROOT,
            env=os.environ | NO_COMPUTE,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            process_group=0,
        )


def kill_with_children(process: subprocess.Popen) -> None:
    """wandb's own service has a session of its own, so a process group is not all."""
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


# ---- The process -------------------------------------------------------------------------


def main(folder: Path, name: str, *, must_be_online: bool) -> int:
    # A signal for the run is not for us: standard input says when the run has ended.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        os.nice(NICENESS)
    try:
        with FileLock(folder / FOLDER / f"{name}.lock", timeout=SECONDS_FOR_ANOTHER):
            log_run(folder, name, must_be_online=must_be_online)
    except Exception as error:  # libraries have their own of every kind
        problem = one_line(error)
        with suppress(OSError):
            replace(SyncState.read(folder, name), problem=problem).write(folder, name)
        print(problem, file=sys.stderr)
        return 1
    return 0


def log_run(folder: Path, name: str, *, must_be_online: bool) -> None:
    """Log all rows that there are, and those that come, until standard input ends: the run has."""
    run, service = TrackedRun(folder), load_service(name)
    state = SyncState(confirmed=SyncState.read(folder, name).confirmed)
    is_online = must_be_online or service.has_credentials()
    try:
        tracker = build_service(service, run, name, is_online=is_online)
        state = replace(state, is_online=is_online)
    except Exception as error:
        if must_be_online or not is_online:
            raise
        problem = f"cannot be reached, so it is kept offline: {one_line(error)}"
        state = replace(state, problem=problem)
        tracker = build_service(service, run, name, is_online=False)
    state.write(folder, name)

    logged = tracker.last_step(state.confirmed) if state.is_online else -1
    stats, seen, has_ended, seconds = folder / "stats.csv", None, False, 0.0
    while not has_ended:
        # Whether it has ended is asked first: what was written before is read then.
        readable, _, _ = select.select([sys.stdin], [], [], seconds)
        has_ended = bool(readable) and not os.read(sys.stdin.fileno(), 1)
        seconds = SECONDS_BETWEEN_LOOKS
        modified = stats.stat().st_mtime_ns if stats.exists() else None
        if modified == seen and not has_ended:
            continue
        seen, before = modified, logged
        for step, values in run.rows():
            if step > logged:
                tracker.log(step, values)
                logged = step
        if logged > before:
            tracker.flush()
            confirmed = logged if state.is_online else state.confirmed
            state = replace(state, last_step=logged, confirmed=confirmed)
            state.write(folder, name)

    done, status = read_json(folder / "done"), read_json(folder / "status.json")
    outcome = done.get("outcome") if done else status.get("state", "unknown")
    reason = done.get("reason") if done else status.get("error") or ""
    curves = folder / "curves.png"
    tracker.end(str(outcome), str(reason), {"curves": curves} if curves.exists() else {})
    replace(state, is_complete=True).write(folder, name)


def build_service(
    service: type[Service], run: TrackedRun, name: str, *, is_online: bool
) -> Service:
    """With an empty archive: what an earlier attempt has kept there is logged again. Online, what
    libraries leave on the disk is beside it: an archive may be all there is of the run."""
    archive = run.folder / FOLDER / (f"{name}-online" if is_online else name)
    shutil.rmtree(archive, ignore_errors=True)
    archive.mkdir(parents=True)
    return service(run, archive, is_online=is_online)


# ---- report.py sync ----------------------------------------------------------------------


def sync_runs(folders: Sequence[Path]) -> tuple[int, int]:
    """Send the runs in these folders or below that are not online as a whole.

    Returns (how many were sent, how many there were to send). Prints to stderr what is wrong, as
    it happens. Raises UserError where no tracker has credentials.
    """
    waiting, lacking = unsent_runs(folders), {}
    for name in dict.fromkeys(name for _, name in waiting):
        try:
            if not load_service(name).has_credentials():
                lacking[name] = f"{name} has no credentials: {LOGIN[name]}"
        except ImportError as error:
            lacking[name] = str(error)
    possible = [(folder, name) for folder, name in waiting if name not in lacking]
    words = "\n".join(f"sync: {problem}" for problem in lacking.values())
    if lacking and not possible:
        raise UserError(words)
    if lacking:  # who has an account with one alone
        print(words, file=sys.stderr)
    num_sent = 0
    with tqdm(possible, unit="run", disable=not sys.stderr.isatty(), leave=False) as bar:
        for folder, name in bar:
            if problem := sync_run(folder, name):
                tqdm.write(f"{folder}: {name}: {problem}", file=sys.stderr)
            else:
                num_sent += 1
    return num_sent, len(waiting)


def unsent_runs(folders: Sequence[Path]) -> list[tuple[Path, str]]:
    """(run folder, tracker) of all that is not online as a whole. Raises UserError."""
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"sync: there is no folder {folder}")
        for path in sorted(folder.rglob(f"{FOLDER}/")):
            config = path.parent / "config.yaml"
            if not config.exists():
                continue
            for name in tracker_names(Config.read(config)):
                state = SyncState.read(path.parent, name)
                if name in LOGIN and not (state.is_online and state.is_complete):
                    found.append((path.parent, name))
    return list(dict.fromkeys(found))  # folders may lie in each other


def sync_run(folder: Path, name: str) -> str | None:
    """What is wrong, or None: it is all there. A live run logs itself."""
    if owner := live_owner(folder):
        return f"still running: {owner}"
    process = start_process(folder, name, must_be_online=True)
    try:
        process.communicate(timeout=SECONDS_PER_SYNC)  # closes its standard input
    except subprocess.TimeoutExpired:
        return f"no answer in {SECONDS_PER_SYNC:.0f} s"
    finally:
        if process.poll() is None:
            kill_with_children(process)
    state = SyncState.read(folder, name)
    is_sent = state.is_online and state.is_complete and not process.returncode
    return None if is_sent else state.problem or f"exit code {process.returncode}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], must_be_online="--online" in sys.argv[3:]))
