"""What all families share: fetch what is missing, one process at a time, and give up on a dead
network."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from loguru import logger

from src.support import UserError

NO_PROGRESS_SECONDS = 20.0  # a connection that is silent for so long is given up
SECONDS_BETWEEN_REMINDERS = 60.0
SECONDS_TO_ANSWER = 5.0


@contextmanager
def alone(lock: Path, doing: str) -> Iterator[None]:
    """Hold a lock, which ends with its process; where another process holds it, say so and wait."""
    file_lock = FileLock(lock)
    timeout = 0.0
    while not file_lock.is_locked:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file_lock.acquire(timeout=timeout)
        except Timeout:
            logger.warning("waiting for another process that {} (lock: {})", doing, lock)
            timeout = SECONDS_BETWEEN_REMINDERS
        except OSError as error:
            raise UserError(f"data_dir: cannot write into {lock.parent}: {error}") from error
    try:
        yield
    finally:
        file_lock.release()


@contextmanager
def read_timeout() -> Iterator[None]:
    """Sockets opened inside raise TimeoutError after NO_PROGRESS_SECONDS of silence.

    For libraries that set no timeout of their own: a stalled server would hold a run for ever.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NO_PROGRESS_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def why_out_of_reach() -> str | None:
    """Why the hub of Hugging Face does not answer; None where it does.

    Called once and first: the libraries themselves try for 23 seconds, and for each file.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # of whichever library it has for HTTP
        return f"{constants.ENDPOINT} does not answer: {type(error).__name__}"
    return None


def missing(dataset: str, reason: str, folder: Path, files: str) -> UserError:
    """The error for data that are not there and cannot be fetched."""
    where = f"it would be read from {files} in the folder {folder}"
    return UserError(f"dataset: {dataset} {reason}; {where}")


def file_stamp(file: Path) -> list[int]:
    """What tells one version of a file from another: bytes, time of change (ns)."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]
