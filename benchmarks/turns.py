"""Contestants in processes of their own that take turns, a segment each.

Imports slow down all that runs beside them, hence the processes; a slow minute of the machine
hits them all, hence the turns. Where it is not asked a contestant waits and uses nothing.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Name = TypeVar("Name")
Segments = Iterator[float]  # each `next` does a segment of the work and gives its seconds


class Contestant:
    """A process that does a segment whenever it is its turn: the other end calls answer()."""

    def __init__(self, script: str, *arguments: str) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, script, *arguments], **pipes)

    def ask(self, question: str) -> float:
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:  # other trainers print of their own
            if line.startswith("ANSWER "):
                return float(line.split()[1])
        raise RuntimeError("a contestant died: see its error above")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def answer(segments: Segments, memory_before: int = 0) -> None:
    """The other end of a Contestant; it ends the process. memory_before: a high_water_mark()."""
    answers = {
        "segment": lambda: next(segments),
        "memory": lambda: (high_water_mark() - memory_before) / 1024,
        "cpu": cpu_seconds,
    }
    for question in sys.stdin:
        print(f"ANSWER {answers[question.strip()]()}", flush=True)
    segments.close()
    os._exit(0)  # trainers that never end wait in threads of theirs


def cpu_seconds() -> float:
    """Of this process and those that it started: what others do on the machine counts little."""
    import psutil

    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def high_water_mark() -> int:
    """Peak memory of this process in KB; ru_maxrss would start from that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def seconds_of_turns(running: Mapping[Name, Contestant], turns: int) -> dict[Name, list[float]]:
    """Seconds of a segment, in each turn; one before them warms up and does not count."""
    seconds, _ = measured(running, turns)
    return seconds


def measured(
    running: Mapping[Name, Contestant], turns: int
) -> tuple[dict[Name, list[float]], dict[Name, float]]:
    """The same, and the processor's seconds of a segment, all processes and threads."""
    for contestant in running.values():
        contestant.ask("segment")
    before = {name: contestant.ask("cpu") for name, contestant in running.items()}
    seconds: dict[Name, list[float]] = {name: [] for name in running}
    for _ in range(turns):
        for name, contestant in running.items():
            seconds[name].append(contestant.ask("segment"))
    after = {name: contestant.ask("cpu") for name, contestant in running.items()}
    return seconds, {name: (after[name] - before[name]) / turns for name in running}


def times_as_fast(own: Sequence[float], other: Sequence[float]) -> float:
    """How many times as fast as the other: the median over the turns."""
    return statistics.median(b / a for a, b in zip(own, other, strict=True))


def own_folder(folder: Path, name: str) -> Path:
    """Each contestant has a folder of its own, and sees the same data."""
    own = folder / name.replace(" ", "_")
    own.mkdir(exist_ok=True)
    for data in ("data", "images"):
        if (folder / data).exists() and not (own / data).exists():
            (own / data).symlink_to(folder / data)
    return own
