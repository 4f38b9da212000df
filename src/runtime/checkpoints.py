"""Checkpoints: the state files that a run resumes from, when they are written, and weights.

A state file NNN.state, after NNN steps, is a header of 64 bytes (a mark, the version, the SHA-256
of the rest), then what torch.save makes of tensors, numbers, texts, lists and dicts. It is read
with weights_only=True, so nothing in it is ever executed. The checksum is our own because that of
torch's zip files is not checked when they are read. Files of weights are for people: they are
plain torch.save.
"""

import hashlib
import io
import re
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import torch
from loguru import logger
from torch import Tensor, nn

from src.runtime.distributed import SINGLE_PROCESS, DistributedContext
from src.runtime.signals import StopRequested
from src.runtime.train_state import TrainState, snapshot
from src.support import UserError, write_atomically

MARK = b"experiment state"  # 16 bytes
VERSION = 1
HEADER = 64  # bytes: mark, version (8), digest (32), zeros
NUM_KEPT = 2  # the newest files; the one before the last serves where the last is corrupt
# At an epoch's end a state is saved only if saving has cost at most this fraction of the time.
MAX_COST = 1 / 50
SECONDS_TO_RETRY = 60.0  # after a save that failed

# What every state of a run holds (src/runtime/train_state.py), and of which type.
CONTENT: dict[str, Any] = {"config": dict, "parts": dict, "generators": dict}
CONTENT |= {"step": int, "epoch": int, "outcome": str | None, "reason": str}
CONTENT |= dict.fromkeys(("data_time", "training_seconds", "run_seconds"), int | float)
PLAIN = {int, float, str, bool, type(None)}


class CorruptCheckpoint(Exception):  # noqa: N818 - the next file may serve
    """A file that is not what was written, and why."""


# ---- One state file ----------------------------------------------------------------------


def write_state(
    path: Path, content: dict[str, Any], *, ensure: Callable[[], object] = lambda: None
) -> None:
    """Raises OSError; then the file is as it was. ensure: see write_atomically."""
    hashing = _Hashing()

    def write(file: BinaryIO) -> None:
        hashing.file = file
        file.write(bytes(HEADER))
        torch.save(content, hashing)  # type: ignore[arg-type]
        file.seek(0)
        file.write(_header(hashing.digest.digest()))

    try:
        write_atomically(path, write, ensure=ensure)
    except RuntimeError:
        if hashing.error:  # torch's own message is no help
            raise hashing.error from None
        raise


class _Hashing:
    """A file that torch.save writes to, and the digest of what it wrote."""

    file: BinaryIO

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        pass  # write_atomically does


def _header(digest: bytes) -> bytes:
    return (MARK + VERSION.to_bytes(8, "little") + digest).ljust(HEADER, b"\0")


def read_state(path: Path, device: str = "cpu") -> dict[str, Any]:
    """What was written, tensors on the device ("meta": without their values).

    Raises CorruptCheckpoint where the file is not what write_state left.
    """
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER)
            if not header.startswith(MARK):
                raise CorruptCheckpoint("is no state file")
            version = int.from_bytes(header[16:24], "little")
            if version != VERSION:
                raise CorruptCheckpoint(f"has version {version}, this code reads {VERSION}")
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):  # a state may be as large as memory
                digest.update(piece)
            if header != _header(digest.digest()):
                raise CorruptCheckpoint("has a wrong checksum")
            file.seek(HEADER)
            return torch.load(file, map_location=device, weights_only=True)
    except CorruptCheckpoint:
        raise
    except OSError as error:
        raise CorruptCheckpoint(f"cannot be read ({error.strerror})") from None
    except Exception as error:  # whole, but of another torch, or holding what it refuses
        *_, what = [type(error).__name__, *re.findall(r"Unsupported [\w: .]*\w", str(error))]
        raise CorruptCheckpoint(f"cannot be read by this torch ({what})") from None


# ---- The state files of a run ------------------------------------------------------------


class CheckpointFiles:
    """The state files of a run, the newest few of them.

    folder=None, a run without a folder, has none and writes none.
    """

    def __init__(
        self,
        folder: Path | None,
        ensure: Callable[[], object] = lambda: None,
        *,
        is_written: bool = True,
    ) -> None:
        """ensure: called before anything is changed; raises where the folder is not ours.
        is_written: not by others than the main process."""
        self.folder, self.ensure = folder, ensure
        self.is_written = folder is not None and is_written

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Raises OSError; what was there before is still there then."""
        if self.folder is None or not self.is_written:
            return
        self.ensure()
        self.folder.mkdir(exist_ok=True)
        for torn in self.folder.glob(".*.state.*"):  # of a run that was killed while it wrote
            if re.fullmatch(r"\.\d{9,}\.state\.\d+", torn.name) and torn.is_file():
                torn.unlink(missing_ok=True)
        write_state(self.folder / f"{step:09d}.state", content, ensure=self.ensure)
        self.prune(NUM_KEPT)

    def prune(self, keep: int) -> None:
        for old in self.paths()[keep:] if self.is_written else ():
            old.unlink(missing_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """The newest state that is not corrupt; None: the run has saved none yet.

        Corrupt files are reported, and renamed where an older one serves. Raises UserError, and
        changes nothing, where none serves: to train from scratch would cost the run its stats and
        weights, and only a person can say whether that is wanted.
        """
        content, corrupt = self.read_newest()
        files = [f"{path.name} {why}" for path, why in corrupt.items()]
        if self.folder and not files:
            files = [f"{path.name} was put aside" for path in sorted(self.folder.glob("*.broken"))]
        if self.folder and files and content is None:
            run, num_rows = self.folder.parent, 0
            if (run / "stats.csv").is_file():
                num_rows = max(0, (run / "stats.csv").read_bytes().count(b"\n") - 1)
            number = len(list(run.glob("checkpoints/*.pt")))
            raise UserError(
                f"{self.folder}: none of the saved states of this run can be read "
                f"({'; '.join(files)}); its {num_rows} rows of stats and {number} "
                f"checkpoint{'s' * (number != 1)} are as they were. Choose another output_dir, or "
                f"delete {self.folder} to start from scratch; they are then put aside, not lost"
            )
        for path, why in corrupt.items():
            logger.warning("{} {}: it is put aside, and the one before it is used", path, why)
            path.rename(path.with_suffix(".broken"))
        return content

    def read_newest(self) -> tuple[dict[str, Any] | None, dict[Path, CorruptCheckpoint]]:
        """(The newest state that is not corrupt, what is the matter with those after it)."""
        corrupt: dict[Path, CorruptCheckpoint] = {}
        for path in self.paths():
            try:
                content: Any = read_state(path)
                is_state = isinstance(content, dict) and all(
                    isinstance(content.get(key, ...), kind) for key, kind in CONTENT.items()
                )
                configs = map(content["config"].get, ("asked", "in_force")) if is_state else [None]
                if not all(isinstance(config, dict) for config in configs):
                    raise CorruptCheckpoint("holds no state of a run")
                if content["step"] != int(path.stem):  # a renamed file would be the newest for ever
                    raise CorruptCheckpoint(f"holds step {content['step']}, not that of its name")
                return content, corrupt
            except CorruptCheckpoint as error:
                corrupt[path] = error
        return None, corrupt

    def paths(self) -> list[Path]:
        """The newest first, by the numbers in their names."""
        files = self.folder.glob("*.state") if self.folder else ()
        numbered = [path for path in files if re.fullmatch(r"[0-9]+", path.stem)]
        return sorted(numbered, key=lambda path: int(path.stem), reverse=True)


# ---- When a state is saved ---------------------------------------------------------------


class CheckpointManager:
    """Saves the state by the clock, at ends of epochs, on a signal and at the end.

    A context around training. It writes in a thread, so that training continues meanwhile. A save
    that fails (a full disk) is reported; the files of before stay, the run continues.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        state: TrainState,
        distributed: DistributedContext = SINGLE_PROCESS,
        *,
        minutes: float,
    ) -> None:
        """distributed: all processes put together what is saved, and the main one writes it."""
        self.files, self.state, self.distributed = files, state, distributed
        self.seconds_between = 60 * minutes if files.is_written else inf
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        # seconds of the last save, the thread's included
        self.cost = 0.0 if files.is_written else inf
        self.verified: set[Any] = set()  # kinds of values that were written and read again
        self.last = perf_counter()
        self.due = self.last + self.seconds_between

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, StopRequested):
            failure = self.save_now()
            if failure and self.files.is_written and not self.files.paths():
                raise UserError(f"stopped, and no state could be saved: {failure}")
            self._report(failure)
            error.message += ", saved" * (not failure)
        elif isinstance(error, GeneratorExit) and not sys.is_finalizing():
            self._report(self.save_now())  # the state is whole then
        elif self.thread:
            self.thread.join()

    def by_the_clock(self) -> None:
        """Called after a step: save every so many minutes."""
        self._save_in_thread(perf_counter() >= self.due)

    def at_epoch_end(self) -> None:
        """Save, unless the last save is so young that this would slow the run down."""
        self._save_in_thread((perf_counter() - self.last) * MAX_COST >= self.cost)

    def at_end(self) -> None:
        """The state of a run that is over. Raises UserError where the disk refuses."""
        error = self.save_now()
        if isinstance(error, OSError):
            why = f"the last state could not be saved ({error.strerror or error})"
            raise UserError(f"{why}; start again when there is room")
        self._report(error)

    def save(self) -> None:
        """Save and wait until it is on disk; what prevented it is reported."""
        self._report(self.save_now())

    def save_now(self) -> Exception | None:
        """Save and wait until it is on disk; what prevented it."""
        self._finish_thread()
        self._write(*self._snapshot())
        error, self.error = self.error, None
        return error

    def _snapshot(self) -> tuple[int, list[dict[str, Any]]]:
        content = snapshot(self.state.state_dict(), is_kept=self.distributed.is_main)
        return self.state.step, [content]

    def _save_in_thread(self, is_wanted: bool) -> None:
        """Where any process wants it; not while the disk is slower than that."""
        is_busy = self.thread is not None and self.thread.is_alive()
        if not self.distributed.max(is_wanted and not is_busy):
            return
        self._finish_thread()
        self.last = perf_counter()
        self.due = self.last + self.seconds_between
        self.thread = threading.Thread(target=self._write, args=self._snapshot(), name="saving")
        self.cost = perf_counter() - self.last
        self.thread.start()

    def _write(self, step: int, content: list[dict[str, Any]]) -> None:
        """content: one snapshot, taken out of the list so that its memory is free when written."""
        if not self.files.is_written:
            return
        started = perf_counter()
        try:
            unverified = kinds(content[0], self.verified)
            self.files.save(step, content.pop())
            if unverified and (paths := self.files.paths()):
                self._verify_readable(paths[0], unverified)
            self.verified |= unverified.keys()
        except Exception as error:  # reported by the main thread, whose log it is
            self.error = error
            self.cost = max(self.cost, SECONDS_TO_RETRY * MAX_COST)
        self.cost += perf_counter() - started

    def _verify_readable(self, path: Path, unverified: dict[Any, tuple[str, Any]]) -> None:
        """Read a file with values of a new kind again: a part of the state may come to hold what
        no file without pickle can."""
        try:
            read_state(path, device="meta")
        except CorruptCheckpoint as error:
            if isinstance(error.__context__, OSError):  # the disk's mistake, not the file's
                raise
            path.unlink()  # it would be in the way of the one before it
            where = []
            for at, value in unverified.values():
                file = io.BytesIO()
                try:
                    torch.save(value, file)
                    file.seek(0)
                    torch.load(file, weights_only=True)
                except Exception:
                    kind = f"{type(value).__module__}.{type(value).__qualname__}"
                    where.append(f"{kind} at {at[1:]}")
            words = f"{error}: {', '.join(where)}" if where else str(error)
            raise CorruptCheckpoint(words) from None

    def _finish_thread(self) -> None:
        if self.thread:
            self.thread.join()
            self.thread = None
        error, self.error = self.error, None
        self._report(error)

    def _report(self, error: Exception | None) -> None:
        if isinstance(error, UserError):  # the folder is not ours any more
            raise error
        if error is None:
            return
        if isinstance(error, CorruptCheckpoint):
            what, none_yet = f"of this run {error}", "the run cannot be resumed"
        else:
            what = f"could not be saved ({getattr(error, 'strerror', None) or error})"
            none_yet = "there is none yet"
        kept = self.files.paths()
        logger.warning("the state {}; {}", what, f"{kept[0]} is kept" if kept else none_yet)


def kinds(content: Any, known: Collection[Any] = ()) -> dict[Any, tuple[str, Any]]:
    """Each kind of value in the tree that is not known: the path and the value of one of them."""
    found: dict[Any, tuple[str, Any]] = {}
    todo = [("", content)]
    while todo:
        path, value = todo.pop()
        kind: Any = type(value)
        if isinstance(value, Tensor):
            kind = (kind, value.dtype, value.layout)
        if kind not in known:
            found.setdefault(kind, (path, value))
        inside: list[tuple[Any, Any]] = []
        if isinstance(value, dict):
            inside = [*value.items()]
            inside += [(f"{key!r} (a key)", key) for key in value if type(key) is not str]
        elif isinstance(value, list | tuple | set | frozenset):
            inside = list(enumerate(value))
        if isinstance(value, dict | list | tuple):  # torch's modules leave notes on their dicts
            inside += getattr(value, "__dict__", {}).items()
        for name, item in inside:
            if not (type(item) in PLAIN and type(item) in known):  # most are numbers of stats
                todo.append((f"{path}/{name}", item))
    return found


# ---- Files of weights for people ---------------------------------------------------------


def save_weights(
    path: Path | None, epoch: int, models: Mapping[str, nn.Module], *, keep: int | None = None
) -> None:
    """Write {'epoch', 'last': state dict, 'av': state dict, …} whole or not at all.

    path=None, a run without a folder or another process than the main one, writes nothing. keep:
    of the epoch_NNNN.pt beside it only so many stay, the newest. UserError where the disk refuses.
    """
    content: dict[str, Any] = {"epoch": epoch}
    content |= {name: model.state_dict() for name, model in models.items()}
    content = snapshot(content, is_kept=path is not None)
    if path is None:
        return
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:  # to continue would lose what was asked for
        raise UserError(
            f"cannot write {path}: {error.strerror}; start it again to resume"
        ) from None
    for old in epoch_files(path.parent)[keep:] if keep is not None else ():
        old.unlink(missing_ok=True)


def epoch_files(folder: Path) -> list[Path]:
    """The epoch_NNNN.pt in a folder, the newest first, by the numbers in their names."""
    files = [file for file in folder.glob("*.pt") if re.fullmatch(r"epoch_\d{4,}", file.stem)]
    return sorted(files, key=lambda file: int(file.stem.split("_")[1]), reverse=True)
