"""The cache of a batch folder: what its runs held, and how their files looked then.

A run is read again when a file of it is another one: by time, size or number on the disk. The
whole cache is thrown away when it is broken, or another version of the code has written it.
"""

import io
import time
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from src.analysis import run_files, runs
from src.analysis.run_files import FILES, PER_FILE, Signature
from src.analysis.runs import Runs, from_arrays, to_arrays
from src.config import yaml_files
from src.support import write_atomically

NAME = ".big_df.npz"
HOUR = 3600  # seconds; nobody writes for so long


def read_cache(batch: Path) -> tuple[Runs, np.ndarray] | None:
    """(the runs, (runs, …) their signatures); None where there is no usable cache."""
    try:
        with np.load(batch / NAME, allow_pickle=False) as arrays:
            if arrays["version"].tobytes() != _version():
                return None
            found, signatures = from_arrays(arrays), arrays["signatures"]
        is_whole = signatures.shape == (len(found.names), PER_FILE * len(FILES))
        return (found, signatures) if is_whole and signatures.dtype == np.int64 else None
    except Exception:  # whatever numpy and json say of a file that is broken
        return None


def write_cache(batch: Path, found: Runs, signatures: list[Signature]) -> None:
    """Where the folder may be written to; else the next reading takes as long as this one."""
    arrays = to_arrays(found)
    if arrays is None:
        return
    arrays["version"] = np.frombuffer(_version(), dtype=np.uint8)
    arrays["signatures"] = np.array(signatures, dtype=np.int64)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    _remove_torn(batch)
    try:
        write_atomically(batch / NAME, file.getvalue(), durable=False)
    except OSError:
        return


def _remove_torn(batch: Path) -> None:
    """What a kill in the middle of writing has left."""
    for path in batch.glob(f".{NAME}.*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > HOUR:
                path.unlink()


@lru_cache(maxsize=1)
def _version() -> bytes:
    """Of the code that reads run folders, so that nobody must remember to count it up."""
    sources = [Path(str(module.__file__)) for module in (run_files, runs, yaml_files)]
    return sha256(b"".join(path.read_bytes() for path in sources)).digest()
