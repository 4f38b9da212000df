"""The run folder: everything that a run leaves behind, and the null object for no folder.

spec.yaml        what was asked for
config.yaml      what was in force, with all that was found out or drawn
training.log     lines of progress; the traceback of a run that died
training.rankN.log         warnings and the traceback of another process than the main one
stats.csv        one row an epoch
system.csv       what the run uses of the machine, every few seconds (src/logging/machine_use.py)
status.json      state, progress and time left, rewritten while the run goes
provenance.json  commit, packages, command, machine; uncommitted.diff beside it
curves.png       the learning curves
trace.json.gz    where the time goes in a few steps, where that was asked for
trackers/        what trackers were told, and what is kept offline for them
state/           what the run goes on from (src/runtime/checkpoint_files.py)
checkpoints/     weights, where they were asked for
earlier-N/       stats and weights of a run that was here before, and was not continued
claim            who runs here now (src/logging/lease.py)
done             what ended the run, and why; there only if it ended by itself
"""

import json
import os
import platform
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import count
from math import isfinite
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import pandas as pd
from loguru import logger

from src.config import Config, read_saved_config, save_config
from src.logging.console import Log
from src.logging.costs import THIS_PROCESS, Meter, Uses
from src.logging.lease import Claim
from src.logging.machine_use import MachineUse
from src.logging.own_files import (
    check_run_folder,
    remove_if_empty,
    remove_torn,
    remove_tracked,
    results_in,
)
from src.logging.provenance import slurm_job, write_provenance
from src.logging.same_run import OtherRun, is_longer
from src.logging.trackers.processes import Senders
from src.logging.trackers.registry import tracker_names
from src.support import UserError, write_atomically

SECONDS_BETWEEN_STATUS = 2.0  # every 10 steps of a linear model would cost more than they
CARRIED = ("step", "num_steps", "progress", "epoch", "seconds_before")  # from attempt to attempt


def open_folder(config: Config, rank: int) -> "RunFolder":
    """The folder that the configuration names, for a process of this rank."""
    return RunFolder(
        config.output_dir,
        log_to_terminal=config.log_to_stdout,
        is_longer=is_longer(config),
        rank=rank,
    )


class RunFolder:
    """A context: opened when a run starts, closed however it ends. path=None writes nothing.

    Raises UserError where the folder cannot be written, another process runs in it, or it
    holds a finished run (which may be made longer: is_longer).
    """

    def __init__(
        self,
        path: str | None,
        *,
        log_to_terminal: bool = False,
        is_longer: bool = False,
        rank: int = 0,
    ) -> None:
        """rank: of several processes only 0 writes; what the others complain of goes into
        training.rankN.log."""
        self.path = None if path is None or rank else Path(path)
        self.log_path = self.path and self.path / "training.log"
        if path is not None and rank:
            self.log_path = Path(path) / f"training.rank{rank}.log"
        self.log_to_terminal, self.is_longer, self.rank = log_to_terminal, is_longer, rank
        self.state: dict[str, Any] = {"state": "running", "pid": os.getpid(), "error": None}
        self.facts: Callable[[], dict[str, Any]] = dict
        self.next_status = 0.0
        self.configs: dict[str, Any] = {}  # asked for and in force, as plain values
        self.stats_text: str | None = None  # that could not be written yet
        self.earlier_status = ""  # status.json as the attempt before has left it
        self.claim: Claim | None = None
        self.meter = Meter({})
        self.machine_use = MachineUse()
        self.senders = Senders()

    def __enter__(self) -> "RunFolder":
        if self.path:
            self._take()
        try:
            self.state |= {"host": platform.node(), "job": slurm_job(), "started": _now()}
            self._begin_attempt()
            self.log = Log(
                self.log_path,
                to_terminal=self.log_to_terminal,
                may_write=self.claim.holds if self.claim else None,
                rank=self.rank,
            )
        except BaseException as error:
            if self.claim:
                self.claim.release()
            if self.path and isinstance(error, OSError):
                raise _cannot_write(self.path, error) from None
            raise
        if self.path:
            where = f" of job {self.state['job']}" if self.state["job"] else ""
            logger.info("attempt {} on {}{}", self.state["attempt"], self.state["host"], where)
        return self

    def _take(self) -> None:
        """Make the folder ours, or refuse."""
        assert self.path
        check_run_folder(self.path)
        _make_folder(self.path)
        self.claim = Claim(self.path)
        try:
            self.claim.take()
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        if (self.path / "done").exists() and not self.is_longer:
            self.claim.release()
            raise UserError(
                f"output_dir: {self.path} holds a finished run; choose another or delete it"
            )
        remove_torn(self.path)

    def _begin_attempt(self) -> None:
        """The status comes before other files: it is what shows that they are ours."""
        if not self.path:
            return
        self.earlier_status, earlier = _read_status(self.path)
        self.state |= {key: earlier[key] for key in CARRIED if key in earlier}
        self.state["attempt"] = earlier.get("attempt", 0) + 1
        self.meter = Meter(earlier)
        self.state["seconds_to_start"] = round(self.meter.start_up, 2)
        self._write_status()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Say how it ended: in the status, and a traceback in the log if it died."""
        try:
            self.machine_use.stop()
            if kind is not None:
                self._note_end(error)
            if self.path and isinstance(error, OtherRun) and self.earlier_status:
                write_atomically(self.path / "status.json", self.earlier_status, durable=False)
            else:
                self.update_status(is_urgent=True)
            is_urgent = isinstance(error, KeyboardInterrupt | GeneratorExit)
            self.senders.close(is_stopped=is_urgent)
        finally:
            self.log.close()
            if self.claim:
                self.claim.release()

    def _note_end(self, error: BaseException | None) -> None:
        if isinstance(error, GeneratorExit):
            self.state["state"] = "left"
            logger.info("left early by the program that ran it")
        elif isinstance(error, KeyboardInterrupt):
            number = getattr(error, "signal", signal.SIGINT)
            is_ctrl_c = number == signal.SIGINT
            self.state["state"] = "interrupted" if is_ctrl_c else "stopped"
            self.state["signal"] = signal.Signals(number).name
            logger.info("interrupted" if is_ctrl_c else f"stopped by {self.state['signal']}")
        else:
            self.state |= {"state": "failed", "error": f"{type(error).__name__}: {error}"}
            is_plain = isinstance(error, UserError)
            logger.opt(exception=None if is_plain else error).error(self.state["error"])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While the caller has the turn, its log lines are not ours."""
        self.log.is_paused = True
        try:
            yield
        finally:
            self.log.is_paused = False

    def ensure_ours(self) -> None:
        """Raises LostClaim where the folder is no longer ours."""
        if self.claim:
            self.claim.ensure()

    def start(
        self,
        asked: Config,
        in_force: Config,
        *,
        is_continued: bool,
        facts: Callable[[], dict[str, Any]],
        uses: Uses = THIS_PROCESS,
    ) -> None:
        """Everything is set up: our configuration, and the end of what an attempt left that this
        one does not continue. spec.yaml stays as a submission has written it.

        facts: what status.json says of the progress, asked whenever it is written.
        """
        self.facts = facts
        self.configs = {"asked": asdict(asked), "in_force": asdict(in_force)}
        self.meter.start(self._step(), uses)
        if not self.path:
            return
        if (self.path / "done").exists() and not is_continued:
            raise OtherRun(
                f"output_dir: {self.path} holds a finished run and no state/ of it; choose another"
            )
        (self.path / "done").unlink(missing_ok=True)
        if not is_continued:
            self._put_earlier_run_aside()
        spec = self.path / "spec.yaml"
        try:
            is_asked_before = _is_asked(spec, asked)
            if not is_continued and not (is_asked_before and has_seeds(asked)):
                remove_tracked(self.path)  # to them it is another
            if not is_asked_before:
                save_config(asked, spec)
            save_config(in_force, self.path / "config.yaml")
            differences = write_provenance(self.path)
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        for difference in differences if is_continued else ():
            logger.warning("goes on with other means: {}", difference)
        assert self.claim
        self.machine_use.start(
            self.path / "system.csv",
            in_force.system_interval,
            uses,
            num_workers=in_force.num_workers,
            may_write=self.claim.holds,
        )

        self.senders.start(self.path, tracker_names(in_force))

    def change_config(self, in_force: Config) -> None:
        """What is in force has changed since start(), as something was found out in training."""
        self.configs["in_force"] = asdict(in_force)
        if path := self._ours():
            try:
                save_config(in_force, path / "config.yaml")
            except OSError as error:
                raise _cannot_write(path, error) from None

    def _put_earlier_run_aside(self) -> None:
        """The stats and weights of a run that this one does not continue go to earlier-1, or the
        next free number. What a run has left that came to neither is removed."""
        assert self.path
        left = results_in(self.path)
        try:
            if not any(name.parent.name or name.name == "stats.csv" for name in left):
                for name in left:
                    (self.path / name).unlink()
                return
            earlier = next(
                folder
                for number in count(1)
                if not (folder := self.path / f"earlier-{number}").exists()
            )
            for name in (*left, Path("config.yaml")):
                if (self.path / name).exists():
                    (earlier / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(self.path / name, earlier / name)
            remove_if_empty(self.path / "checkpoints")
        except OSError as error:
            raise _cannot_write(self.path, error) from None
        logger.warning(
            "no saved state: the run starts from scratch; its earlier results are now in {}",
            earlier,
        )

    def save_stats(self, frame: pd.DataFrame) -> None:
        """A disk that is full is reported; the file of before stays, and the run goes on."""
        if path := self._ours():
            is_first = self.stats_text is None
            self.stats_text = frame.to_csv()
            try:
                self._write_stats(path)
            except OSError as error:
                if is_first:
                    words = _cannot_write(path / "stats.csv", error)
                    logger.warning("{}; trying again every epoch", words)
            self.senders.look()

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
                self.next_status = monotonic() + SECONDS_BETWEEN_STATUS
                logger.debug("status.json: {}", error.strerror)

    def finish(self, outcome: str, reason: str) -> None:
        """The run ended by itself: outcome is finished, early_stopped or diverged.

        Raises UserError, and leaves no `done`, where the disk refuses what belongs to it.
        """
        level = "INFO" if outcome == "finished" else "WARNING"  # those reach the terminal
        logger.log(level, "{}: {}", outcome, reason)
        if path := self._ours():
            end = {"outcome": outcome, "reason": reason, "time": _now(), **self.facts()}
            end |= self.configs
            try:
                self._write_stats(path)
                write_atomically(path / "done", json.dumps(end, indent=1) + "\n")
            except OSError as error:
                raise _cannot_write(path, error) from None
        self.state |= {"state": "done", "outcome": outcome, "reason": reason}

    def _ours(self) -> Path | None:
        """The folder to write to. Raises LostClaim where it is no longer ours."""
        self.ensure_ours()
        return self.path

    def _step(self) -> int:
        return int(self.facts().get("step", self.state.get("step", 0)))

    def _write_status(self) -> None:
        if path := self._ours():
            self.next_status = monotonic() + SECONDS_BETWEEN_STATUS
            self.state |= self.facts()
            self.state |= self.meter.status(self._step())
            text = json.dumps(self.state | {"updated": _now()}, indent=1)
            write_atomically(path / "status.json", text, durable=False)


def _is_asked(spec: Path, asked: Config) -> bool:
    """Whether spec.yaml asks for the same; a damaged one does not."""
    try:
        return spec.exists() and read_saved_config(spec) == asked
    except UserError:
        return False


def has_seeds(asked: Config) -> bool:
    """Whether a run that begins anew does again what it has done."""
    return asked.seed_model is not None and asked.seed_training is not None


def _read_status(folder: Path) -> tuple[str, dict[str, Any]]:
    """(text, content) of an earlier attempt's; ('', {}) where there is none, or a damaged one."""
    try:
        text = (folder / "status.json").read_text()
        status = json.loads(text)
        numbers = [status.get(key, 0) for key in ("attempt", *CARRIED)]
    except (OSError, ValueError, AttributeError, RecursionError):
        return "", {}
    is_whole = isinstance(numbers[0], int) and all(map(_is_number, numbers))
    return (text, status) if is_whole else ("", {})


def _is_number(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and isfinite(value))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from None
    except ValueError as error:  # a zero byte in it
        raise UserError(f"output_dir: cannot write to {str(path)!r}: {error}") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"output_dir: cannot write to {path}: permission denied")


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"output_dir: cannot write to {path}: {error.strerror}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
