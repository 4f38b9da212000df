"""TFRecord files read at random, and without TensorFlow, which reads them in order.

A record is its length (uint64), a checksum of that (uint32), the data and a checksum of these
(uint32), little-endian (tensorflow/core/lib/io/record_writer.h). Where each one starts is found
once, by seeking from length to length, and kept beside the file.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from src.data.sources.tfds.records import Records
from src.support import write_atomically

HEADER, FOOTER = 12, 4  # bytes around the data
FILES_AT_ONCE = 16  # on a network file system, looking for lengths is waiting
POLYNOMIAL = 0x82F63B78  # of CRC-32C, reflected
MASK = 0xA282EAD8  # what TFRecord adds to a checksum


class TFRecords(Records):
    """ValueError or OSError for files that are broken, missing, or of another number of records
    than the instructions say.

    A file is opened for each record: so processes share nothing, and a thousand files are no
    burden.
    """

    def __init__(self, instructions: Sequence[Any]) -> None:
        super().__init__(instructions)
        starts = _starts_in({Path(part.filename): part.examples_in_shard for part in instructions})
        self.starts = [starts[Path(file)] for file in self.files]

    def read(self, part: int, position: int) -> bytes:
        start, stop = self.starts[part][position : position + 2].tolist()
        with open(self.files[part], "rb") as file:
            file.seek(start)
            record = file.read(stop - start)
        length = stop - start - HEADER - FOOTER
        if len(record) != stop - start or int.from_bytes(record[:8], "little") != length:
            raise ValueError(f"{self.files[part]} has changed since its records were looked up")
        return record[HEADER:-FOOTER]


def _starts_in(counts: dict[Path, int]) -> dict[Path, np.ndarray]:
    """File -> (records + 1,) int64 where its records start, and its end."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        kept = zip(counts, pool.map(_kept_starts, counts), strict=True)
        found = {file: starts for file, starts in kept if starts is not None}
        if new := [file for file in counts if file not in found]:
            where = new[0].name + ", …" * (len(new) > 1)
            logger.info("looking up the records of {} ({:,} files), once", where, len(new))
            stamps = [_stamp(file) for file in new]  # before, as a file may change meanwhile
            found |= zip(new, pool.map(find_starts, new), strict=True)
            if not all(pool.map(_keep, new, stamps, [found[file] for file in new])):
                logger.info("{} takes no files: they are looked up each time", new[0].parent)
    for file, count in counts.items():
        if len(found[file]) != count + 1:
            raise ValueError(f"{file} has {len(found[file]) - 1} records, not {count}")
    return found


def find_starts(file: Path) -> np.ndarray:
    """(records + 1,) int64 where the records of a file start, and its end; ValueError."""
    starts, headers, size = [0], [], file.stat().st_size
    with open(file, "rb", buffering=0) as f:
        while starts[-1] < size:
            f.seek(starts[-1])
            headers.append(f.read(HEADER))
            if not any(headers[-1]):  # which is no header; such are the holes of a broken copy
                break
            length = int.from_bytes(headers[-1][:8], "little")
            starts.append(starts[-1] + HEADER + length + FOOTER)
    if starts[-1] != size or not _are_headers(b"".join(headers)):
        raise ValueError(f"{file} is no whole TFRecord file")
    return np.array(starts)


def _are_headers(headers: bytes) -> bool:
    """Whether each of these lengths has the checksum that stands behind it."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ POLYNOMIAL, table >> 1).astype(np.uint32)
    rows = np.frombuffer(headers, np.uint8).reshape(-1, HEADER)
    crc = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for column in rows[:, :8].T:
        crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    stored = rows[:, 8:].copy().view("<u4")[:, 0]
    return bool(np.all((crc >> 15 | crc << 17) + np.uint32(MASK) == stored))


# ---- What is kept: an array of the file's size and time (ns), then the starts --------------


def _index_of(file: Path) -> Path:
    return file.with_name(f".{file.name}.index.npy")


def _stamp(file: Path) -> list[int]:
    """What tells one version of a file from another."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _kept_starts(file: Path) -> np.ndarray | None:
    """The starts of a file where they were kept, and the file is the same."""
    stamp = _stamp(file)
    try:
        kept = np.load(_index_of(file), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if kept.dtype != np.int64 or kept.ndim != 1 or kept[:2].tolist() != stamp:
        return None
    starts = kept[2:]
    is_sound = len(starts) and starts[0] == 0 and starts[-1] == stamp[0]
    return starts if is_sound and np.all(np.diff(starts) >= HEADER + FOOTER) else None


def _keep(file: Path, stamp: list[int], starts: np.ndarray) -> bool:
    """Whether they could be written. A lost index costs time alone: no waiting for the disk."""
    content = BytesIO()
    np.save(content, np.concatenate([stamp, starts]))
    try:
        write_atomically(_index_of(file), content.getvalue(), durable=False)
    except OSError:
        return False
    return True
