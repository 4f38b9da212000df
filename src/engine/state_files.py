"""State files: what a run goes on from, checked before it is believed.

A file is a header of 64 bytes (a mark, the version, the SHA-256 of the rest), then what
torch.save makes of tensors, numbers, texts, lists and dicts. It is read with
weights_only=True, so nothing in it is ever executed.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from loguru import logger

from src.names import UserError

MARK = b"experiment state"  # 16 bytes
VERSION = 1
HEADER = 64  # bytes: mark, version (8), digest (32), zeros
KEPT = 2  # the newest files; the one before the last serves where the last is broken


class BrokenState(Exception):  # noqa: N818 - the next file may serve
    """A file that cannot be believed, and why. is_torn: it holds nothing that anyone could use."""

    def __init__(self, why: str, *, is_torn: bool = True) -> None:
        super().__init__(why)
        self.is_torn = is_torn


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

    Raises BrokenState where the file is not what write_state left.
    """
    try:
        with open(path, "rb") as file:
            _check(file)
            file.seek(HEADER)
            return torch.load(file, map_location=device, weights_only=True)
    except BrokenState:
        raise
    except OSError as error:
        raise BrokenState(f"cannot be read ({error.strerror})", is_torn=False) from None
    except Exception as error:  # whole, but of another torch, or holding what it refuses
        *_, what = [type(error).__name__, *re.findall(r"Unsupported [\w: .]*\w", str(error))]
        raise BrokenState(f"cannot be read by this torch ({what})", is_torn=False) from None


def _check(file: BinaryIO) -> None:
    """The mark, the version and the checksum; in pieces, as a state may be as large as memory."""
    header = file.read(HEADER)
    if not header.startswith(MARK):
        raise BrokenState("is no state file")
    version = int.from_bytes(header[16:24], "little")
    if version != VERSION:
        why = f"has version {version}, this code reads {VERSION}"
        raise BrokenState(why, is_torn=False)
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    if header != _header(digest.digest()):
        raise BrokenState("has a wrong checksum")


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


class StateFiles:
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
    ) -> "StateFiles":
        folder = None if output_dir is None else Path(output_dir) / "state"
        return cls(folder, ensure, is_written=is_written)

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Raises OSError; what was there before is still there then."""
        if self.folder is None or not self.is_written:
            return
        self.ensure()
        self.folder.mkdir(exist_ok=True)
        for torn in self.folder.glob(".*.state.*"):  # of a run that was killed while it wrote
            torn.unlink(missing_ok=True)
        write_state(self.folder / f"{step:09d}.state", content, ensure=self.ensure)
        self.prune(KEPT)

    def prune(self, keep: int) -> None:
        for old in self.paths()[keep:] if self.is_written else ():
            old.unlink(missing_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """The newest that can be believed; None: there is none.

        Those that cannot are reported and renamed. Raises UserError where the only ones that
        are left may be good for other code.
        """
        broken: dict[Path, BrokenState] = {}
        content = None
        for path in self.paths():
            try:
                content = read_state(path)
                break
            except BrokenState as error:
                logger.warning("{} {}: it is put aside", path, error)
                broken[path] = error
        for path, why in broken.items():
            if content is None and not why.is_torn:
                raise UserError(f"{path} {why}; delete {path.parent} to start anew")
            path.rename(path.with_suffix(".broken"))
        if broken:
            logger.warning("the one before it is used" if content else "no state is left")
        return content

    def paths(self) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob("[0-9]*.state"), reverse=True) if self.folder else []
