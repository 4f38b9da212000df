"""State files: what a run goes on from, checked before it is believed.

A file is a header of 64 bytes (a mark, the version, the SHA-256 of the rest), then what
torch.save makes of tensors, numbers, texts, lists and dicts. It is read with
weights_only=True, so nothing in it is ever executed.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch
from loguru import logger

MARK = b"experiment state"  # 16 bytes
VERSION = 1
HEADER = 64  # bytes: mark, version (8), digest (32), zeros
KEPT = 2  # the newest files; the one before the last serves where the last is broken


class BrokenState(Exception):  # noqa: N818 - the next file may serve
    """A file that cannot be believed, and why."""


def write_state(path: Path, content: dict[str, Any]) -> None:
    """Write beside the file, flush to disk, rename. Raises OSError; then the file is as it was."""
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
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError):  # torch's own of a write that failed
            raise OSError(f"cannot write {path}: {error}") from error
        raise


def read_state(path: Path) -> dict[str, Any]:
    """What was written. Raises BrokenState where the file is not what write_state left."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BrokenState(f"cannot be read ({error.strerror})") from None
    header, content = data[:HEADER], memoryview(data)[HEADER:]
    if not header.startswith(MARK):
        raise BrokenState("is no state file")
    version = int.from_bytes(header[16:24], "little")
    if version != VERSION:
        raise BrokenState(f"has version {version}, this code reads {VERSION}")
    if header != _header(hashlib.sha256(content).digest()):
        raise BrokenState("has a wrong checksum")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whole, but of another torch
        raise BrokenState(f"cannot be read by this torch ({type(error).__name__})") from None


def _header(digest: bytes) -> bytes:
    return (MARK + VERSION.to_bytes(8, "little") + digest).ljust(HEADER, b"\0")


class _Hashing:
    """A file that torch.save writes to, and the digest of what it wrote."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


class StateFiles:
    """The state files of a run: NNN.state after NNN steps, the newest few of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Raises OSError; what was there before is still there then."""
        self.folder.mkdir(exist_ok=True)
        for torn in self.folder.glob(".*.state.*"):  # of a run that was killed while it wrote
            torn.unlink(missing_ok=True)
        write_state(self.folder / f"{step:09d}.state", content)
        for old in self.paths()[KEPT:]:
            old.unlink(missing_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """The newest that can be believed; those that cannot are reported. None: there is none."""
        for path in self.paths():
            try:
                return read_state(path)
            except BrokenState as error:
                logger.warning("{} {}: the one before it is used", path, error)
        return None

    def paths(self) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob("[0-9]*.state"), reverse=True)
