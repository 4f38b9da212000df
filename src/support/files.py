"""Files that are whole or not there, and where the project lies."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]  # the folder of train.py


def write_atomically(path: str | Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write beside the file, flush to disk, rename: a reader sees the old or the new.

    durable: wait for the disk; without it a power cut may lose the newest version.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
