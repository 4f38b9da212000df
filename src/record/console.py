"""What a person sees while a run goes: lines in training.log, a bar on a terminal."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from loguru import logger
from tqdm import tqdm

if TYPE_CHECKING:
    from loguru import Record

LINE = "{time:YYYY-MM-DD HH:mm:ss} | {level: <7} | {message}"
LINE_ON_TERMINAL = "{time:HH:mm:ss} | {message}"  # a terminal may have 80 columns


def open_log(path: Path | None, *, to_terminal: bool) -> list[int]:
    """Send loguru's lines to the file and the terminal; returns what close_log takes.

    The terminal gets warnings (a download, a wait) in any case, all lines if asked.
    Tracebacks come without the values of variables, which may hold secrets.
    """
    with suppress(ValueError):
        logger.remove(0)  # loguru's own, which prints everything
    sinks = [] if path is None else [logger.add(path, format=LINE, diagnose=False)]
    terminal: dict[str, Any] = {"format": LINE_ON_TERMINAL, "diagnose": False}
    if to_terminal:
        sinks.append(logger.add(_print_above_bar, **terminal))
    else:
        sinks.append(logger.add(_warn_above_bar, filter=_is_warning, **terminal))
    return sinks


def close_log(sinks: list[int]) -> None:
    for sink in sinks:
        logger.remove(sink)


def _print_above_bar(line: str) -> None:
    tqdm.write(line, end="")


def _warn_above_bar(line: str) -> None:
    tqdm.write(line, end="", file=sys.stderr)


def _is_warning(record: "Record") -> bool:
    """Not errors: those end the run, and the command line shows them."""
    return record["level"].name == "WARNING"


class Progress:
    """Lines and a bar of one run's training; the bar on a terminal only. A context."""

    def __init__(self) -> None:
        self.bar = tqdm(unit="step", disable=not sys.stderr.isatty(), leave=False)
        self.start(0)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def start(self, num_steps: int) -> None:
        """The first step comes now, of num_steps."""
        self.num_steps = self.bar.total = num_steps
        self.started = self.last_time = perf_counter()
        self.last_samples = 0

    def line(self, step: int, epoch: int, samples: int, averages: Mapping[str, float]) -> None:
        """Say how training is doing after `step` steps and `samples` examples in all."""
        now = perf_counter()
        rate = (samples - self.last_samples) / max(now - self.last_time, 1e-9)
        self.last_time, self.last_samples = now, samples
        accuracy = averages.get("accuracy")
        logger.info(
            "epoch {} | step {}/{} ({:.0%}) | loss {:.4f}{} | {:,.0f} examples/s | {} left",
            epoch,
            step,
            self.num_steps,
            step / self.num_steps,
            averages["loss"],
            "" if accuracy is None else f" | accuracy {accuracy:.4f}",
            rate,
            timedelta(seconds=round(self.seconds_left(step))),
        )
        if not self.bar.disable:
            shown = f"epoch {epoch}, loss {averages['loss']:.4f}"
            self.bar.set_postfix_str(shown, refresh=False)
            self.bar.update(step - self.bar.n)

    def seconds_left(self, step: int) -> float:
        """From the mean pace so far, evaluations included."""
        return (perf_counter() - self.started) / max(step, 1) * (self.num_steps - step)

    def status(self, step: int) -> dict[str, float]:
        """What status.json says of the progress."""
        return {
            "step": step,
            "num_steps": self.num_steps,
            "progress": step / self.num_steps if self.num_steps else 1.0,
            "seconds_left": round(self.seconds_left(step), 1),
        }
