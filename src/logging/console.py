"""What a person sees while a run goes: lines in training.log, a bar on a terminal."""

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from io import FileIO
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from loguru import logger
from tqdm import tqdm

from src.config import Config

if TYPE_CHECKING:
    from loguru import Record

LINE = "{time:YYYY-MM-DD HH:mm:ss} | {level: <7} | {message}"
LINE_ON_TERMINAL = "{time:HH:mm:ss} | {message}"  # a terminal may have 80 columns


class Log:
    """Where loguru's lines go while a run goes; nowhere while it is paused.

    The terminal gets warnings (a download, a wait) in any case, all lines if requested.
    Tracebacks come without the values of variables, which may hold secrets.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        to_terminal: bool,
        may_write: Callable[[], bool] = lambda: True,
        rank: int = 0,
    ) -> None:
        """may_write: asked before each line of the file. rank: of several processes the others
        than 0 are silent but for warnings, in their file."""
        self.is_paused = False
        self.sinks: list[int] = []
        with suppress(ValueError):
            logger.remove(0)  # loguru's own, which prints everything

        def add(
            sink: "Callable[[str], None] | _LogFile",
            format: str,
            level: str = "DEBUG",
            is_wanted: "Callable[[Record], bool]" = lambda record: True,
        ) -> None:
            def passes(record: "Record") -> bool:
                return not self.is_paused and is_wanted(record)

            handler = logger.add(sink, format=format, level=level, filter=passes, diagnose=False)
            self.sinks.append(handler)

        if path is not None and rank:
            add(_LogFile(path, is_lazy=True), LINE, "WARNING")
        elif path is not None:
            add(_LogFile(path), LINE, is_wanted=lambda record: may_write())
        if to_terminal and not rank:
            add(lambda line: tqdm.write(line, end=""), LINE_ON_TERMINAL)
        elif not rank:  # not errors: those end the run, and the command line shows them
            add(_warn_above_bar, LINE_ON_TERMINAL, is_wanted=_is_warning)

    def close(self) -> None:
        for sink in self.sinks:
            with suppress(ValueError):  # the program around us has removed it
                logger.remove(sink)


def _is_warning(record: "Record") -> bool:
    return record["level"].name == "WARNING"


class _LogFile:
    """A file that a full disk makes incomplete; loguru's own would end the run."""

    def __init__(self, path: Path, *, is_lazy: bool = False) -> None:
        """is_lazy: there is no file before the first line."""
        self.path = path
        self.file = None if is_lazy else self._open()
        self.is_complete = True

    def _open(self) -> FileIO:
        return open(self.path, "ab", buffering=0)

    def write(self, line: str) -> None:
        try:
            self.file = self.file or self._open()
            self.file.write(line.encode())
        except OSError as error:
            if self.is_complete:
                _warn_above_bar(f"{self.path}: {error.strerror}: lines are missing\n")
            self.is_complete = False

    def stop(self) -> None:
        if self.file:
            self.file.close()


def _warn_above_bar(line: str) -> None:
    tqdm.write(line, end="", file=sys.stderr)


class Progress:
    """Lines of one run's training, and a bar on a terminal."""

    def __init__(self, rank: int = 0) -> None:
        """rank: of several processes only 0 draws."""
        is_shown = sys.stderr.isatty() and not rank
        self.bar = tqdm(unit="step", disable=not is_shown, leave=False)
        self.start(0)

    def close(self) -> None:
        self.bar.close()

    def log_setup(
        self,
        config: Config,
        num_parameters: int,
        device: object,
        chosen: Iterable[str | None],
    ) -> None:
        """The first lines: what was inferred and chosen. chosen: how it computes, in words."""
        examples = ", ".join(f"{name} {n:,}" for name, n in (config.data_n_examples or {}).items())
        where = ", cached on the device" if config.data_on_device else ""
        logger.info("data {}: {} examples{}", config.dataset, examples, where)
        model = "model {}: {:,} parameters, {} -> {}, on {}"
        shapes = config.model_input_shape, config.model_output_dim
        logger.info(model, config.model, num_parameters, *shapes, device)
        logger.info("computes in {}", ", ".join(filter(None, chosen)))

    def start(self, num_steps: int, *, step: int = 0, samples: int = 0) -> None:
        """The next step comes now, of num_steps; earlier attempts did `step` of them."""
        self.num_steps = self.bar.total = num_steps
        self.started = self.last_time = perf_counter()
        self.first_step = self.bar.n = step
        self.last_samples = samples

    def resume(self) -> None:
        """Training resumes after something else: that time is no part of the pace."""
        self.last_time = perf_counter()

    def line(self, step: int, epoch: int, samples: int, averages: Mapping[str, float]) -> None:
        """Log how training is doing after `step` steps and `samples` examples in all."""
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
        """From the mean pace of this attempt so far, evaluations included."""
        seconds_per_step = (perf_counter() - self.started) / max(step - self.first_step, 1)
        return seconds_per_step * (self.num_steps - step)

    def status(self, step: int) -> dict[str, float]:
        """What status.json says of the progress."""
        return {
            "step": step,
            "num_steps": self.num_steps,
            "progress": step / self.num_steps if self.num_steps else 1.0,
            "seconds_left": round(self.seconds_left(step), 1),
        }
