"""array_record files, which a process that has workers never opens.

The library has threads, and a worker process that is forked from one with such threads crashes
or hangs at its first record (array_record 0.8.6: what they were waiting for stands on stacks
that are gone). So a run with workers asks a process of its own, `python -m
src.data.sources.tfds.array_records`, and its workers, forked where no
file was opened, read by themselves.
"""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, ClassVar
from weakref import finalize

from src.data.sources.tfds.records import Records
from src.support import ROOT, one_line

COUNT = -1  # the position that asks for the number of records
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class ArrayRecords(Records):
    """ValueError for files that are broken, missing, or of another number of records than the
    instructions say."""

    def __init__(self, instructions: Sequence[Any], reader: "Reader | OpenFiles") -> None:
        """reader: OpenFiles, which is faster, where no workers are to come."""
        super().__init__(instructions)
        self.owner = self.opened_by = os.getpid()
        self.source: Reader | OpenFiles | None = reader
        for part in instructions:
            found, wanted = int(reader.read(str(part.filename), COUNT)), part.examples_in_shard
            if found != wanted:
                raise ValueError(f"{part.filename} has {found} records, not {wanted}")

    def read(self, part: int, position: int) -> bytes:
        if self.source is None or self.opened_by != os.getpid():
            self.opened_by = os.getpid()
            is_worker = self.opened_by != self.owner
            self.source = OpenFiles() if is_worker and OpenFiles.is_safe() else Reader()
        return self.source.read(self.files[part], position)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"source": None}


class OpenFiles:
    """Files that this process opens, once each."""

    processes: ClassVar[set[int]] = set()  # that did so: this one, and those that it comes from

    @classmethod
    def is_safe(cls) -> bool:
        """Whether no process did that this one was forked from."""
        return cls.processes <= {os.getpid()}

    def __init__(self) -> None:
        self.readers: dict[str, Any] = {}
        # ImageNet has 1,024 of them, as many as a process may have by default.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def read(self, file: str, position: int) -> bytes:
        try:
            reader = self.readers.get(file) or self._open(file)
            if position == COUNT:
                return str(reader.num_records()).encode()
            return reader.read([position])[0]
        except RuntimeError as error:  # whatever is wrong
            raise ValueError(f"{file}: {error}") from error

    def _open(self, file: str) -> Any:
        from array_record.python.array_record_module import ArrayRecordReader

        self.processes.add(os.getpid())
        options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 2**15}
        reader = ArrayRecordReader(file, **options)  # for single records, as TFDS has it
        if not reader.ok():
            reader.close()  # raises the reason
        self.readers[file] = reader
        return reader


class Reader:
    """A process that opens files for this one, until this one ends."""

    process: subprocess.Popen[bytes]
    is_asking: bool  # and has not yet all of the answer

    def __init__(self) -> None:
        self._start()

    def read(self, file: str, position: int) -> bytes:
        if self.is_asking:  # an interrupt left an answer unread: it would be taken for the next
            _end(self.process, os.getpid())
            self._start()
        self.is_asking = True
        stdin: Any = self.process.stdin
        stdin.write(json.dumps([file, position]).encode() + b"\n")
        stdin.flush()
        size = int.from_bytes(self._bytes(8), "little", signed=True)
        content = self._bytes(abs(size))
        self.is_asking = False
        if size < 0:
            raise ValueError(content.decode())
        return content

    def _start(self) -> None:
        """Signals are meant for the run, which still needs its examples then."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "src.data.sources.tfds.array_records"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.is_asking = False
        finalize(self, _end, self.process, os.getpid())

    def _bytes(self, number: int) -> bytes:
        stdout: Any = self.process.stdout
        content = stdout.read(number)
        if len(content) < number:
            raise OSError("the process that reads array_record files has ended")
        return content


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:  # not in a worker, which has a copy
        process.kill()
        process.communicate()


def answer_all() -> None:
    """Each line asks for [file, position]; the answer is its size, negative for a fault, and it."""
    files = OpenFiles()
    for line in sys.stdin.buffer:
        try:
            content, sign = files.read(*json.loads(line)), 1
        except Exception as error:
            content, sign = one_line(error).encode(), -1
        sys.stdout.buffer.write((sign * len(content)).to_bytes(8, "little", signed=True))
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    answer_all()
