"""State files: what a run goes on from, checked before it is believed.

A file is a header of 64 bytes (a mark, the version, the SHA-256 of the rest), then what
torch.save makes of tensors, numbers, texts, lists and dicts. It is read with
weights_only=True, so nothing in it is ever executed.

Checkpoints of weights, for people, are another matter: see save_weights().
"""

import hashlib
import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from loguru import logger
from torch import nn

from src.runtime.train_state import snapshot
from src.support import UserError, write_atomically

MARK = b"experiment state"  # 16 bytes
VERSION = 1
HEADER = 64  # bytes: mark, version (8), digest (32), zeros
KEPT = 2  # the newest files; the one before the last serves where the last is broken


# What every state of a run holds (src/runtime/train_state.py), and of which type.
SECONDS = ("data_time", "training_seconds", "run_seconds")
CONTENT: dict[str, Any] = {"config": dict, "parts": dict, "generators": dict, "step": int}
CONTENT |= {"epoch": int, "outcome": str | None, "reason": str} | dict.fromkeys(
    SECONDS, int | float
)


class CorruptCheckpoint(Exception):  # noqa: N818 - the next file may serve
    """A file that cannot be believed, and why."""


def write_state(
    path: Path, content: dict[str, Any], *, ensure: Callable[[], object] = lambda: None
) -> None:
    """Write beside the file, flush to disk, rename. Raises OSError; then the file is as it was.

    ensure: called before the rename; what it raises prevents it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(bytes(HEADER))
            hashing = _Hashing(file)
            torch.save(content, hashing)  # type: ignore[arg-type]
            file.seek(0)
            file.write(_header(hashing.digest.digest()))
            file.flush()
            os.fsync(file.fileno())
        ensure()
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and hashing.error:  # torch's own words are no help
            raise hashing.error from None
        raise


def read_state(path: Path, device: str = "cpu") -> dict[str, Any]:
    """What was written, tensors on the device ("meta": without their values).

    Raises CorruptCheckpoint where the file is not what write_state left.
    """
    try:
        with open(path, "rb") as file:
            _check(file)
            file.seek(HEADER)
            return torch.load(file, map_location=device, weights_only=True)
    except CorruptCheckpoint:
        raise
    except OSError as error:
        raise CorruptCheckpoint(f"cannot be read ({error.strerror})") from None
    except Exception as error:  # whole, but of another torch, or holding what it refuses
        *_, what = [type(error).__name__, *re.findall(r"Unsupported [\w: .]*\w", str(error))]
        raise CorruptCheckpoint(f"cannot be read by this torch ({what})") from None


def _check(file: BinaryIO) -> None:
    """The mark, the version and the checksum; in pieces, as a state may be as large as memory."""
    header = file.read(HEADER)
    if not header.startswith(MARK):
        raise CorruptCheckpoint("is no state file")
    version = int.from_bytes(header[16:24], "little")
    if version != VERSION:
        raise CorruptCheckpoint(f"has version {version}, this code reads {VERSION}")
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    if header != _header(digest.digest()):
        raise CorruptCheckpoint("has a wrong checksum")


def _check_content(content: Any, path: Path) -> None:
    """Raises CorruptCheckpoint where a whole file is not the state that its name promises."""
    is_state = isinstance(content, dict) and all(
        key in content and isinstance(content[key], kind) for key, kind in CONTENT.items()
    )
    if not is_state or any(
        not isinstance(content["config"].get(key), dict) for key in ("asked", "in_force")
    ):
        raise CorruptCheckpoint("holds no state of a run")
    if content["step"] != int(path.stem):  # a renamed file would be the newest for ever
        raise CorruptCheckpoint(f"holds step {content['step']}, not that of its name")


def _header(digest: bytes) -> bytes:
    return (MARK + VERSION.to_bytes(8, "little") + digest).ljust(HEADER, b"\0")


class _Hashing:
    """A file that torch.save writes to, and the digest of what it wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


class CheckpointFiles:
    """The state files of a run: NNN.state after NNN steps, the newest few of them.

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

    @classmethod
    def of_run(
        cls, output_dir: str | None, ensure: Callable[[], object], *, is_written: bool
    ) -> "CheckpointFiles":
        folder = None if output_dir is None else Path(output_dir) / "state"
        return cls(folder, ensure, is_written=is_written)

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
        self.prune(KEPT)

    def prune(self, keep: int) -> None:
        for old in self.paths()[keep:] if self.is_written else ():
            old.unlink(missing_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """The newest state that can be believed; None: the run has saved none yet.

        Files that cannot be believed are reported, and renamed where an older one serves. Raises
        UserError, and changes nothing, where none serves: to train from scratch would cost the run
        its stats and weights, and only a person can say whether that is wanted.
        """
        broken: dict[Path, CorruptCheckpoint] = {}
        content = None
        for path in self.paths():
            try:
                content = read_state(path)
                _check_content(content, path)
                break
            except CorruptCheckpoint as error:
                content, broken[path] = None, error
        put_aside = sorted(self.folder.glob("*.broken")) if self.folder else []
        if content is None and (broken or put_aside):
            files = [f"{path.name} {why}" for path, why in broken.items()]
            raise UserError(
                self._refusal(files or [f"{path.name} was put aside" for path in put_aside])
            )
        for path, why in broken.items():
            logger.warning("{} {}: it is put aside, and the one before it is used", path, why)
            path.rename(path.with_suffix(".broken"))
        return content

    def _refusal(self, files: list[str]) -> str:
        """What is the matter with these files, what else is there, and what can be done."""
        assert self.folder
        run = self.folder.parent
        try:
            num_rows = max(0, (run / "stats.csv").read_bytes().count(b"\n") - 1)
        except OSError:
            num_rows = 0
        num_checkpoints = len(list(run.glob("checkpoints/*.pt")))
        checkpoints = f"{num_checkpoints} checkpoint" + "s" * (num_checkpoints != 1)
        return (
            f"{self.folder}: none of the saved states of this run can be read "
            f"({'; '.join(files)}); its {num_rows} rows of stats and {checkpoints} are as they "
            f"were. Choose another output_dir, or delete {self.folder} to start anew; they are "
            "then put aside, not lost"
        )

    def paths(self) -> list[Path]:
        """The newest first, by the numbers in their names."""
        files = self.folder.glob("*.state") if self.folder else ()
        numbered = [path for path in files if re.fullmatch(r"[0-9]+", path.stem)]
        return sorted(numbered, key=lambda path: int(path.stem), reverse=True)


# ---- Files of weights for people ---------------------------------------------------------


def save_weights(path: Path | None, epoch: int, models: Mapping[str, nn.Module]) -> None:
    """Write {'epoch', 'last': state dict, 'av': state dict, …} whole or not at all.

    path=None, a run without a folder or another process than the main one, writes nothing.
    Raises UserError where the disk refuses.
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
    except OSError as error:  # going on would lose what was asked for
        raise UserError(
            f"cannot write {path}: {error.strerror}; start it again to resume"
        ) from None


def prune(path: Path | None, *, keep: int | None) -> None:
    """Of the epoch_NNNN.pt beside path, only the newest `keep` stay; None: all."""
    if path is None or keep is None:
        return
    files = [file for file in path.parent.iterdir() if re.fullmatch(r"epoch_\d{4,}\.pt", file.name)]
    files.sort(key=lambda file: int(file.stem.split("_")[1]))
    for old in files[:-keep]:
        old.unlink(missing_ok=True)
