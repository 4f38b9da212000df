"""Examples in the two kinds of files that TFDS writes, read at random and without TensorFlow.

array_record   by Google's library. A worker process that is forked from one in which the library
               has opened a file crashes at its first record (array_record 0.8.6, with any options:
               its pool has threads whose stacks a fork gives away). So a run with workers asks
               a process of its own, `python -m src.data.sources.tfds_records`, and its workers,
               forked where no file was opened, read by themselves.
tfrecord       by hand, as no library does it: TFDS and array_record read these files in order. A
               record is its length (uint64), a checksum of that (uint32), the data and a checksum
               of these (uint32), little-endian (tensorflow/core/lib/io/record_writer.h). Where
               each one starts is found once, by seeking from length to length, and kept beside
               the file.
"""

import os
import resource
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar
from weakref import finalize

import numpy as np
from loguru import logger

from src.data.sources.fetch import file_stamp
from src.support import ROOT, one_line, write_atomically

OF_THE_RUN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # it still needs its examples then
HEADER, FOOTER = 12, 4  # bytes around the data of a tfrecord
FILES_AT_ONCE = 16  # on a network file system, looking for lengths is waiting
POLYNOMIAL = 0x82F63B78  # of CRC-32C, reflected
MASK = 0xA282EAD8  # what TFRecord adds to a checksum


class Records(ABC):
    """Serialised examples in parts of files, one part after the other: records[i] -> bytes.

    instructions: TFDS's, one a part, with filename, skip, take and examples_in_shard. ValueError
    or OSError for files that are broken, missing, or have another number of records.
    """

    def __init__(self, instructions: Sequence[Any]) -> None:
        self.files = [str(part.filename) for part in instructions]
        self.skips = [part.skip for part in instructions]
        self.firsts = np.cumsum([0] + [part.take for part in instructions])
        counts = {str(part.filename): part.examples_in_shard for part in instructions}
        for (file, wanted), found in zip(counts.items(), self.count(list(counts)), strict=True):
            if found != wanted:
                raise ValueError(f"{file} has {found} records, not {wanted}")

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        part = int(np.searchsorted(self.firsts, index, side="right")) - 1
        return self.read(self.files[part], self.skips[part] + index - int(self.firsts[part]))

    @abstractmethod
    def count(self, files: list[str]) -> list[int]:
        """The number of records of each file."""

    @abstractmethod
    def read(self, file: str, position: int) -> bytes:
        """The record at this position of the file."""


# ---- array_record ------------------------------------------------------------------------


class ArrayRecords(Records):
    """Records of array_record files."""

    def __init__(self, reader: "OpenFiles | ReaderProcess", instructions: Sequence[Any]) -> None:
        """reader: OpenFiles, which is faster, where no workers are to come."""
        self.reader: OpenFiles | ReaderProcess | None = reader
        self.process = os.getpid()
        super().__init__(instructions)

    def count(self, files: list[str]) -> list[int]:
        return [self.reader.read(file, None) for file in files]  # type: ignore[union-attr]

    def read(self, file: str, position: int) -> bytes:
        own = os.getpid()
        if self.reader is None or self.process != own:  # in a worker
            is_safe = OpenFiles.processes <= {own}  # none did that it was forked from
            self.process, self.reader = own, OpenFiles() if is_safe else ReaderProcess()
        return self.reader.read(file, position)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"reader": None}


class OpenFiles:
    """Files that this process opens, once each."""

    processes: ClassVar[set[int]] = set()  # that did so: this one, and those it was forked from

    def __init__(self) -> None:
        self.readers: dict[str, Any] = {}
        # ImageNet has 1,024 of them, as many as a process may have by default.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def read(self, file: str, position: int | None) -> Any:
        """The record at this position, or for None the number of records."""
        from array_record.python.array_record_module import ArrayRecordReader

        try:
            if file not in self.readers:
                self.processes.add(os.getpid())
                options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 2**15}
                reader = ArrayRecordReader(file, **options)  # for single records, as TFDS has it
                if not reader.ok():
                    reader.close()  # raises the reason
                self.readers[file] = reader
            reader = self.readers[file]
            return reader.num_records() if position is None else reader.read([position])[0]
        except RuntimeError as error:  # whatever is wrong
            raise ValueError(f"{file}: {error}") from error


class ReaderProcess:
    """A process that opens files for this one, until this one ends."""

    process: subprocess.Popen[bytes] | None = None

    def read(self, file: str, position: int | None) -> Any:
        """As OpenFiles.read."""
        if self.process is None:
            self._start()
        try:
            self.connection.send((file, position))
            answer = self.connection.recv()
        except EOFError:
            self.process = None
            raise OSError("the process that reads array_record files has ended") from None
        except BaseException:  # an interrupt left an answer unread: it would be taken for the next
            self.process = None
            raise
        if isinstance(answer, str):
            raise ValueError(answer)
        return answer

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "src.data.sources.tfds_records", str(theirs.fileno())]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_THE_RUN)
        try:
            self.process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.connection = Connection(ours.detach())
        finalize(self.connection, _end, self.process, os.getpid())


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:  # not in a worker, which has a copy
        process.kill()
        process.wait()


def answer_all(connection: Connection) -> None:
    """Each request is (file, position); the answer: what OpenFiles reads, or the error's text."""
    files = OpenFiles()
    with suppress(EOFError):  # the run has ended
        while True:
            request = connection.recv()
            try:
                answer = files.read(*request)
            except Exception as error:
                answer = one_line(error)
            connection.send(answer)


# ---- tfrecord ----------------------------------------------------------------------------


class TFRecords(Records):
    """Records of TFRecord files.

    A file is opened for each record: so processes share nothing, and a thousand files are no
    burden.
    """

    def count(self, files: list[str]) -> list[int]:
        self.starts: dict[str, Any] = {}  # file -> (records + 1,) int64
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            self.starts |= zip(files, pool.map(_read_index, files), strict=True)
            if new := [file for file in files if self.starts[file] is None]:
                where = Path(new[0]).name + ", …" * (len(new) > 1)
                logger.info("looking up the records of {} ({:,} files), once", where, len(new))
                stamps = [file_stamp(Path(file)) for file in new]  # before, as files may change
                self.starts |= zip(new, pool.map(find_starts, new), strict=True)
                if not all(pool.map(_write_index, new, stamps, map(self.starts.get, new))):
                    folder = Path(new[0]).parent
                    logger.info("{} takes no files: they are looked up each time", folder)
        return [len(self.starts[file]) - 1 for file in files]

    def read(self, file: str, position: int) -> bytes:
        start, stop = self.starts[file][position : position + 2].tolist()
        with open(file, "rb") as f:
            f.seek(start)
            record = f.read(stop - start)
        length = stop - start - HEADER - FOOTER
        if len(record) != stop - start or int.from_bytes(record[:8], "little") != length:
            raise ValueError(f"{file} has changed since its records were looked up")
        return record[HEADER:-FOOTER]


def find_starts(file: str) -> np.ndarray:
    """(records + 1,) int64 where the records of a file start, and its end; ValueError."""
    starts, headers, size = [0], [], os.path.getsize(file)
    with open(file, "rb", buffering=0) as f:
        while starts[-1] < size:
            f.seek(starts[-1])
            headers.append(f.read(HEADER))
            if not any(headers[-1]):  # which is no header; such are the holes of a broken copy
                break
            length = int.from_bytes(headers[-1][:8], "little")
            starts.append(starts[-1] + HEADER + length + FOOTER)
    if starts[-1] == size:  # then each header is whole: does each length have its checksum?
        table = np.arange(256, dtype=np.uint32)
        for _ in range(8):
            table = np.where(table & 1, table >> 1 ^ POLYNOMIAL, table >> 1).astype(np.uint32)
        rows = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, HEADER)
        crc = np.full(len(rows), 0xFFFFFFFF, np.uint32)
        for column in rows[:, :8].T:
            crc = table[(crc ^ column) & 0xFF] ^ (crc >> 8)
        crc = ~crc
        stored = rows[:, 8:].copy().view("<u4")[:, 0]
        if np.all((crc >> 15 | crc << 17) + np.uint32(MASK) == stored):
            return np.array(starts)
    raise ValueError(f"{file} is no whole TFRecord file")


def index_of(file: str | Path) -> Path:
    """The file that keeps an array: size and time (ns) of the file of records, then the starts."""
    return Path(file).with_name(f".{Path(file).name}.index.npy")


def _read_index(file: str) -> np.ndarray | None:
    """The starts of a file where they were kept, and the file is the same."""
    stamp = file_stamp(Path(file))
    try:
        kept = np.load(index_of(file), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if kept.dtype != np.int64 or kept.ndim != 1 or kept[:2].tolist() != stamp:
        return None
    starts = kept[2:]
    is_sound = len(starts) and starts[0] == 0 and starts[-1] == stamp[0]
    return starts if is_sound and np.all(np.diff(starts) >= HEADER + FOOTER) else None


def _write_index(file: str, stamp: list[int], starts: np.ndarray) -> bool:
    """Whether it could be written. A lost index costs time alone: no waiting for the disk."""
    content = BytesIO()
    np.save(content, np.concatenate([stamp, starts]))
    try:
        write_atomically(index_of(file), content.getvalue(), durable=False)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    answer_all(Connection(int(sys.argv[1])))
