"""arrays/: the arrays that a run measures, such as an accuracy for each class.

One file a column, arrays/test.last.class_accuracy.npy for test/last/class_accuracy: float64 of the
shape (epochs, …), a row for each row of stats.csv, NaN where an epoch has none. numpy.load reads
it. It grows in place, so that an epoch costs what its own row does: first the row is written, then
the header, whose length numpy keeps the same while the number of rows grows.
"""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.support import UserError

FOLDER = "arrays"
ARRAY = re.compile(r"(train|.+\.\w+)\.\w+\.npy")  # the names of ours
MAP_FROM = 2**26  # bytes from which on a file is mapped and not read
npy = np.lib.format


def append_arrays(run_folder: Path, row: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write row `row`, counted from 0, of each column; what a killed attempt has left from there
    on is gone. Raises UserError where an array has another shape than before.

    arrays: float64."""
    folder = run_folder / FOLDER
    values = {column.replace("/", ".") + ".npy": x for column, x in arrays.items()}
    if values:
        folder.mkdir(exist_ok=True)
    for name in sorted(values.keys() | {path.name for path in _files(folder)}):
        path, value = folder / name, values.get(name)
        if not _is_readable(path):
            if value is None:
                continue
            np.save(path, np.empty((0, *value.shape)))
        with open(path, "r+b") as file:
            shape, start = _read_header(file)
            if value is None and shape[0] <= row:
                continue
            if value is not None:
                if value.shape != shape[1:]:
                    shapes = f"{value.shape}, and had {shape[1:]} before"
                    words = f"an array of the shape {shapes}; fill it up, or give it another name"
                    raise UserError(f"{_column(path)}: {words}")
                num_missing = max(0, row - shape[0])
                file.seek(start + (row - num_missing) * value.nbytes)
                file.write(np.full((num_missing, *value.shape), np.nan).tobytes() + value.tobytes())
                file.flush()
                os.fsync(file.fileno())
            file.seek(0)
            length = row + (value is not None)
            header = {"descr": "<f8", "fortran_order": False, "shape": (length, *shape[1:])}
            npy.write_array_header_1_0(file, header)


def read_arrays(run_folder: str | Path) -> dict[str, np.ndarray]:
    """Column -> (epochs, …), of those that can be read. Large ones are mapped: read when used."""
    found = {}
    for path in _files(Path(run_folder, FOLDER)):
        try:
            if not _is_readable(path):
                continue
            is_large = path.stat().st_size >= MAP_FROM
            found[_column(path)] = np.load(path, "r" if is_large else None, allow_pickle=False)
        except (OSError, ValueError):  # it is damaged
            continue
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.npy") if ARRAY.fullmatch(path.name))


def _is_readable(path: Path) -> bool:
    """Not where there is no file, a process was killed when it made the file, or it is not ours."""
    try:
        with open(path, "rb") as file:
            _read_header(file)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _read_header(file: Any) -> tuple[tuple[int, ...], int]:
    """(shape, where the rows begin). A row that its file does not hold does not count."""
    npy.read_magic(file)
    shape, _, dtype = npy.read_array_header_1_0(file)
    if dtype != np.float64 or not shape:
        raise ValueError("no rows of float64")
    start, size = file.tell(), 8 * math.prod(shape[1:])
    num_rows = (os.fstat(file.fileno()).st_size - start) // max(size, 1)
    return (min(shape[0], num_rows), *shape[1:]), start


def _column(path: Path) -> str:
    """'train.norms' -> 'train/norms'; the name of a split may hold dots."""
    name = path.name.removesuffix(".npy")
    return "/".join(name.rsplit(".", 1 if name.startswith("train.") else 2))
