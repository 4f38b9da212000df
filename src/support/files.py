"""Files that are whole or not there, and where the project lies."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).parents[2]  # the folder of train.py


def write_atomically(
    path: str | Path,
    content: str | bytes | Callable[[BinaryIO], object],
    *,
    durable: bool = True,
    ensure: Callable[[], object] = lambda: None,
) -> None:
    """Write beside the file, flush to disk, rename: a reader sees the old or the new.

    content: or a function that writes it. durable: wait for the disk; without it a power cut may
    lose the newest version. ensure: called before the rename; what it raises prevents it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        ensure()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
