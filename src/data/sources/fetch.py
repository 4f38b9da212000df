"""Fetching what is missing: one process at a time, and never waiting for a dead network."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from loguru import logger

from src.support import UserError

NO_PROGRESS_SECONDS = 20.0  # a connection that is silent for so long is given up
SECONDS_BETWEEN_REMINDERS = 60.0


@contextmanager
def alone(lock: Path, doing: str) -> Iterator[None]:
    """Hold a lock; where another process has it, say so and wait.

    The lock ends with the process that holds it. On file systems that do not
    lock (some NFS) two processes may both fetch, which costs time alone: each
    writes aside and renames.
    """
    held = FileLock(lock)
    patience = 0.0
    while not held.is_locked:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held.acquire(timeout=patience)
        except Timeout:
            logger.warning("waiting for another process that {} (lock: {})", doing, lock)
            patience = SECONDS_BETWEEN_REMINDERS
        except OSError as error:
            raise UserError(f"data_dir: cannot write into {lock.parent}: {error}") from error
    try:
        yield
    finally:
        held.release()


@contextmanager
def read_timeout() -> Iterator[None]:
    """Sockets opened inside raise TimeoutError after NO_PROGRESS_SECONDS of silence.

    For libraries that set no timeout of their own, where a stalled server
    would hold a run for ever.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NO_PROGRESS_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def missing(dataset: str, reason: str, folder: Path, files: str) -> UserError:
    """The error for data that are not there and cannot be had."""
    return UserError(
        f"dataset: {dataset} {reason}; it would be read from {files} in the folder {folder}"
    )
