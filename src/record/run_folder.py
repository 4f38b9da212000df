"""The run folder: everything that a run leaves behind, and the null object for no folder.

spec.yaml        what was asked for
config.yaml      what was in force, with all that was found out or drawn
training.log     lines of progress; the traceback of a run that died
stats.csv        one row an epoch
status.json      state, progress and time left, rewritten while the run goes
provenance.json  commit, packages, command, machine; uncommitted.diff beside it
curves.png       the learning curves
checkpoints/     weights, where they were asked for
claim            who runs here now (src/record/claim.py)
done             what ended the run, and why; there only if it ended by itself
"""

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import pandas as pd
from loguru import logger

from src.config import FOUND_IN_DATA, KEYS, Config, make_config, save_config
from src.files import write_atomically
from src.names import UserError
from src.record.claim import Claim
from src.record.console import Log
from src.record.provenance import slurm_job, write_provenance
from src.yaml_files import read_yaml_file

SECONDS_BETWEEN_STATUS = 2.0  # every 10 steps of a linear model would cost more than they

# Keys that say how to run, not what: they may differ from those of a finished run. At most
# they change rounding, or how soon a divergence is seen.
WITHOUT_EFFECT = {"log_interval", "log_interval_eval", "log_to_stdout", "output_dir", "save_plot"}
WITHOUT_EFFECT |= {"device", "host_name", "multi_gpu", "num_workers", "data_dir", "data_download"}
WITHOUT_EFFECT |= {"wandb", "wandb_project_name", "wandb_run_name", "wandb_tags"}
FOUND = FOUND_IN_DATA | {"batch_size_accum"}


class RunFolder:
    """A context: opened when a run starts, closed however it ends. path=None writes nothing.

    Raises UserError where the folder cannot be written, another process runs in it, or it
    holds a finished run.
    """

    def __init__(self, path: str | None, *, log_to_terminal: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self.log_to_terminal = log_to_terminal
        self.state: dict[str, Any] = {"state": "running", "pid": os.getpid(), "error": None}
        self.next_status = 0.0
        self.claim: Claim | None = None

    def __enter__(self) -> "RunFolder":
        if self.path:
            self._take()
        self.log = Log(
            self.path / "training.log" if self.path else None,
            to_terminal=self.log_to_terminal,
            may_write=self.claim.holds if self.claim else None,
        )
        try:
            self.state |= {"host": platform.node(), "job": slurm_job(), "started": _now()}
            self._write_status()
            if self.path:
                write_provenance(self.path)
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _take(self) -> None:
        """Make the folder ours, or refuse."""
        assert self.path
        _make_folder(self.path)
        self.claim = Claim(self.path)
        self.claim.take()
        if (self.path / "done").exists():
            self.claim.release()
            raise UserError(
                f"output_dir: {self.path} holds a finished run; choose another or delete it"
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Say how it ended: in the status, and a traceback in the log if it died."""
        try:
            if kind is not None:
                self._note_end(error)
            self._write_status()
        finally:
            self.log.close()
            if self.claim:
                self.claim.release()

    def _note_end(self, error: BaseException | None) -> None:
        if isinstance(error, GeneratorExit):
            self.state["state"] = "left"
            logger.info("left early by the program that ran it")
        elif isinstance(error, KeyboardInterrupt):
            self.state["state"] = "interrupted"
            logger.info("interrupted")
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

    def start(self, asked: Config, in_force: Config) -> None:
        """Everything is set up: replace what an unfinished run left by our configuration.

        spec.yaml stays as a submission has written it.
        """
        if not self.path:
            return
        for stale in ("stats.csv", "curves.png"):
            (self.path / stale).unlink(missing_ok=True)
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        spec = self.path / "spec.yaml"
        if not spec.exists() or make_config(read_yaml_file(spec)) != asked:
            save_config(asked, spec)
        save_config(in_force, self.path / "config.yaml")

    def save_stats(self, frame: pd.DataFrame) -> None:
        if path := self._ours():
            write_atomically(path / "stats.csv", frame.to_csv())

    def checkpoint(self, name: str) -> Path | None:
        """Where the weights of that name belong; None where nothing is written."""
        path = self._ours()
        return path / "checkpoints" / f"{name}.pt" if path else None

    def update_status(self, **facts: Any) -> None:
        """New facts for status.json, written every few seconds at most."""
        self.state |= facts
        if monotonic() >= self.next_status:
            self._write_status()

    def finish(self, outcome: str, reason: str, **facts: Any) -> None:
        """The run ended by itself: outcome is finished, early_stopped or diverged."""
        level = "INFO" if outcome == "finished" else "WARNING"  # those reach the terminal
        logger.log(level, "{}: {}", outcome, reason)
        self.state |= {"state": "done", "outcome": outcome, "reason": reason, **facts}
        if path := self._ours():
            end = {"outcome": outcome, "reason": reason, "time": _now(), **facts}
            write_atomically(path / "done", json.dumps(end, indent=1) + "\n")

    def _ours(self) -> Path | None:
        """The folder to write to. Raises LostClaim where it is no longer ours."""
        if self.claim:
            self.claim.ensure()
        return self.path

    def _write_status(self) -> None:
        if path := self._ours():
            self.next_status = monotonic() + SECONDS_BETWEEN_STATUS
            text = json.dumps(self.state | {"updated": _now()}, indent=1)
            write_atomically(path / "status.json", text, durable=False)


def is_finished(config: Config) -> bool:
    """Whether config.output_dir holds the finished run of this very config.

    Raises UserError where it holds the finished run of another one.
    """
    folder = Path(config.output_dir) if config.output_dir else None
    if not folder or not ((folder / "done").exists() and (folder / "stats.csv").exists()):
        return False
    if differing := differing_keys(config, folder):
        raise UserError(
            f"output_dir: {folder} holds a finished run that differs in {', '.join(differing)}; "
            "choose another output_dir, or delete that folder"
        )
    return True


def differing_keys(config: Config, folder: Path) -> list[str]:
    """The keys in which this run would not be the one of the folder, as asked or as in force."""
    differing: list[list[str]] = []
    for name in ("spec.yaml", "config.yaml"):
        if (folder / name).exists():
            try:
                earlier = make_config(read_yaml_file(folder / name))
            except UserError as error:
                raise UserError(f"{folder / name}: {error}") from None
            differing.append([key for key in KEYS if _differs(key, config, earlier)])
    return min(differing, key=len, default=[])


def _differs(key: str, config: Config, earlier: Config) -> bool:
    if key in WITHOUT_EFFECT:
        return False
    value, before = getattr(config, key), getattr(earlier, key)
    if key in FOUND and None in (value, before):  # one was asked, one in force
        return False
    return value != before


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir: cannot write to {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise UserError(f"output_dir: cannot write to {path}: permission denied")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
