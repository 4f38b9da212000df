"""What a run records while it trains: lines of training.log, a bar on a terminal, stats.csv and
arrays/.

stats.csv has one row an epoch, with times in seconds, and its columns are decided here: epoch,
step, timestamp; train/loss, train/accuracy, train/time, train/data_time, train/seen_examples,
train/examples_per_second, train/peak_share, train/learning_rate; for each other split and each
evaluated model SPLIT/MODEL/loss, …/accuracy, …/time, …/data_time. No accuracy where targets are
real; also …/perplexity where tokens are predicted. peak_share (of what the device could compute in
train/time, src/runtime/throughput.py) where it is known alone. Then whatever else was measured
(src/metrics.py), by its name. Last, system/NAME_mean and system/NAME_peak of what
src/logging/machine_use.py has seen in that epoch, where it has looked.

arrays/ has the arrays that were measured, such as an accuracy for each class. One file a column,
arrays/test.last.class_accuracy.npy for test/last/class_accuracy: float64 of the shape (epochs, …),
a row for each row of stats.csv, NaN where an epoch has none. numpy.load reads it. It grows in
place, so that an epoch costs what its own row does: first the row is written, then the header,
whose length numpy keeps the same while the number of rows grows.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import FileIO
from itertools import accumulate
from numbers import Integral, Real
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
import pandas as pd
from loguru import logger
from tqdm import tqdm

from src.config import Config
from src.metrics import DIRECTIONS, SYSTEM_PREFIX, direction, is_result, metric_name
from src.support import UserError, bad_value, one_line

SERIOUS = ("WARNING", "ERROR", "CRITICAL")
LINE = "{time:YYYY-MM-DD HH:mm:ss} | {level: <7} | {message}"
LINE_ON_TERMINAL = "{time:HH:mm:ss} | {message}"  # a terminal may have 80 columns
IF_KNOWN = "train/peak_share"
TIMES = ("time", "data_time")
THROUGHPUT = ("seen_examples", "examples_per_second", "peak_share", "learning_rate")

BEST_WEIGHTS = "checkpoints/best.pt"
ARRAYS = "arrays"  # of a run folder
ARRAY_FILE = re.compile(r"(train|.+\.\w+)\.\w+\.npy")  # the names of ours
MAP_FROM = 2**26  # bytes from which on a file is mapped and not read
npy = np.lib.format


# ---- The log -----------------------------------------------------------------------------


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
        """may_write: called before each line of the file. rank: of several processes the others
        than 0 are silent but for warnings, in their file."""
        self.is_paused = False
        self.sinks: list[int] = []
        with suppress(ValueError):
            logger.remove(0)  # loguru's own, which prints everything

        def add(sink: Any, format: str, is_wanted: Callable[[str], bool]) -> None:
            """is_wanted: of a line's level."""
            handler = logger.add(
                sink,
                format=format,
                level="DEBUG",
                filter=lambda record: not self.is_paused and is_wanted(record["level"].name),
                diagnose=False,
            )
            self.sinks.append(handler)

        if path is not None and rank:
            add(_LogFile(path, is_lazy=True), LINE, lambda level: level in SERIOUS)
        elif path is not None:
            add(_LogFile(path), LINE, lambda level: may_write())
        if to_terminal and not rank:
            add(lambda line: tqdm.write(line, end=""), LINE_ON_TERMINAL, lambda level: True)
        elif not rank:  # not errors: those end the run, and the command line shows them
            add(_write_above_bar, LINE_ON_TERMINAL, lambda level: level == "WARNING")

    def close(self) -> None:
        for sink in self.sinks:
            with suppress(ValueError):  # the program around us has removed it
                logger.remove(sink)


class _LogFile:
    """A file that a full disk makes incomplete; loguru's own would end the run."""

    def __init__(self, path: Path, *, is_lazy: bool = False) -> None:
        """is_lazy: there is no file before the first line."""
        self.path, self.is_complete = path, True
        self.file = None if is_lazy else FileIO(path, "a")

    def write(self, line: str) -> None:
        try:
            self.file = self.file or FileIO(self.path, "a")
            self.file.write(line.encode())
        except OSError as error:
            if self.is_complete:
                _write_above_bar(f"{self.path}: {error.strerror}: lines are missing\n")
            self.is_complete = False

    def stop(self) -> None:
        if self.file:
            self.file.close()


def _write_above_bar(line: str) -> None:
    tqdm.write(line, end="", file=sys.stderr)


class _Bar(tqdm):
    """Of a run: `epoch 3 |███   | loss 0.092  acc 0.979  …`, in one line of any terminal."""

    parts: Sequence[str] = ()  # those that come last are left out where there is no room

    @property
    def format_dict(self) -> dict[str, Any]:
        facts = super().format_dict
        room = (facts["ncols"] or 80) - len(f"{facts['prefix']} || ") - 4
        widths = accumulate(2 + len(part) for part in self.parts)
        fitting = [part for part, width in zip(self.parts, widths, strict=True) if width <= room]
        return facts | {"text": "  ".join(fitting)}


class Progress:
    """Lines of one run's training, and a bar on a terminal."""

    def __init__(self, rank: int = 0, *, is_shown: bool = True) -> None:
        """rank: of several processes only 0 draws."""
        is_shown = is_shown and sys.stderr.isatty() and not rank
        form = "{desc} |{bar}| {text}"
        self.bar = _Bar(
            desc="starts", disable=not is_shown, leave=False, bar_format=form, dynamic_ncols=True
        )
        self.evaluated = ""  # the last evaluation, for the bar
        self.start(0)

    def close(self) -> None:
        self.bar.close()

    def log_setup(
        self, config: Config, num_parameters: int, device: object, chosen: Iterable[str | None]
    ) -> None:
        """The first lines: what was inferred and chosen. chosen: how it computes, in words."""
        examples = ", ".join(f"{name} {n:,}" for name, n in (config.data_n_examples or {}).items())
        where = ", cached on the device" * bool(config.data_on_device)
        inputs = "×".join(map(str, config.model_input_shape or ()))
        lines = [
            f"data {config.dataset}: {examples} examples{where}",
            f"model {config.model}: {num_parameters:,} parameters, "
            f"{inputs} -> {config.model_output_dim}, on {device}",
            f"computes in {', '.join(filter(None, chosen))}",
        ]
        for line in lines:
            logger.info("{}", line)
        if not self.bar.disable and not config.log_to_stdout:
            if self.first_step:
                lines.append(f"resumes after step {self.first_step:,} of {self.num_steps:,}")
            folder = f"run folder {config.output_dir}"
            _write_above_bar("\n".join([*lines, *[folder] * bool(config.output_dir)]) + "\n")

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
        means = " | ".join(f"{k} {x:.4f}" for k, x in averages.items() if k != "perplexity")
        left = timedelta(seconds=round(self.seconds_left(step)))
        words = "epoch {} | step {}/{} ({:.0%}) | {} | {:,.0f} examples/s | {} left"
        done = step, self.num_steps, step / self.num_steps
        logger.info(words, epoch, *done, means, rate, left)
        if not self.bar.disable:
            parts = [f"loss {averages['loss']:#.3g}"]
            parts += [f"acc {averages['accuracy']:.3f}"] if "accuracy" in averages else []
            parts += [f"{str(left).removeprefix('0:')} left", self.evaluated]
            self.bar.parts = [*filter(None, parts), f"{tqdm.format_sizeof(rate)} ex/s"]
            self.bar.set_description_str(f"epoch {epoch}", refresh=False)
            self.bar.update(step - self.bar.n)

    def note_evaluation(self, results: Mapping[str, Mapping[str, float]]) -> None:
        """For the bar: what the first split's last model reaches. results: 'SPLIT/MODEL' -> …"""
        if groups := list(results):
            split = groups[0].partition("/")[0]
            group = [name for name in groups if name.partition("/")[0] == split][-1]
            metric = next(name for name in DIRECTIONS if name in results[group])
            self.evaluated = f"{group} {results[group][metric]:#.3g}"

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


# ---- stats.csv ---------------------------------------------------------------------------


class Stats:
    """The rows so far; a part of the training state. arrays: column -> array, of the last row."""

    def __init__(
        self,
        splits: list[str],
        models: list[str],
        metrics: Sequence[str],
        added: Sequence[str] = (),
    ) -> None:
        """splits: those that are evaluated; models: last, av, …; metrics: loss, accuracy, …, of
        training too; added: those of evaluations alone, which may be arrays."""
        groups = [f"{split}/{model}" for split in splits for model in models]
        self.columns = ["epoch", "step", "timestamp"]
        self.columns += [f"train/{x}" for x in (*metrics, *TIMES, *THROUGHPUT)]
        self.columns += [f"{group}/{x}" for group in groups for x in (*metrics, *TIMES)]
        self.added = [f"{group}/{x}" for group in groups for x in added]
        self.rows: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, epoch: int, step: int, groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Append an epoch: {'train': {'loss': …}, 'test/last': {…}}; returns the flat row.

        Raises UserError for a value that is neither a number nor an array.
        """
        row: dict[str, Any] = {"epoch": epoch, "step": step}
        row["timestamp"] = datetime.now(UTC).isoformat(timespec="seconds")
        self.arrays = {}
        for group, values in groups.items():
            for name, value in values.items():
                column = f"{group}/{name}"
                plain = _plain(value, column)
                if isinstance(plain, np.ndarray):
                    self.arrays[column] = plain
                else:
                    row[column] = plain
        self.rows.append(row)
        return row

    @staticmethod
    def read_arrays(folder: str | Path) -> dict[str, np.ndarray]:
        """Column -> (epochs, …), of a run folder, of those that can be read. Large ones are
        mapped: read when used."""
        found = {}
        for path in _array_files(Path(folder, ARRAYS)):
            with suppress(OSError, ValueError):  # it is damaged
                if _read_header(path)[0] is not None:
                    is_large = path.stat().st_size >= MAP_FROM
                    found[_column(path)] = np.load(path, "r" if is_large else None)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]

    def frame(self) -> pd.DataFrame:
        """All rows, with the same columns in the same order however few were filled."""
        seen = dict.fromkeys(column for row in self.rows for column in row)
        columns = [c for c in self.columns if c in seen or c != IF_KNOWN]  # in some attempt
        others = [c for c in dict.fromkeys([*self.added, *seen]) if c in seen and c not in columns]
        columns += sorted(others, key=lambda c: c.startswith(SYSTEM_PREFIX))
        return pd.DataFrame(self.rows, columns=columns)

    @staticmethod
    def read(folder: str | Path) -> pd.DataFrame:
        """The dataframe that was written to a run folder. Raises UserError where it is damaged."""
        path = Path(folder) / "stats.csv"
        try:
            stats = pd.read_csv(path, index_col=0)
            if stats.empty:
                raise ValueError("it holds no epoch")
            stats[[c for c in stats if is_result(c)]].astype(float)
        except (OSError, ValueError) as error:  # pandas' own are of the second kind
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: cannot be read ({reason}); move {folder} away") from None
        return stats


def _plain(value: Any, column: str) -> float | np.ndarray:
    """An int or a float, or of an array with dimensions float64: of numpy's and torch's, on any
    device. A saved state, which is read without pickle, can hold no other numbers."""
    if getattr(value, "ndim", 0):
        array = value.detach().cpu().double() if hasattr(value, "detach") else value
        try:
            return np.asarray(array, dtype=np.float64)
        except (TypeError, ValueError):
            raise bad_value(column, value, "an array of numbers") from None
    if hasattr(value, "ndim"):
        value = value.item()
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise bad_value(column, value, "a number, or an array of numpy or torch")


def summarize_run(
    folder: str | None, stats: pd.DataFrame | None = None, *, as_json: bool = False
) -> str:
    """What a run reached, and where to look: a line each, with the best epoch of each metric beside
    the last.

    stats: None: those that the folder holds. as_json: for programs, {"output_dir", "last": column
    -> value, "best": column -> {"value", "epoch"}}, with null for what is no finite number. The
    best is that of a metric whose better direction is known. Raises UserError where they are
    damaged.
    """
    stats = Stats.read(folder or "") if stats is None else stats
    last, best = stats.iloc[-1], dict[str, dict[str, Any]]()
    results = [column for column in stats if is_result(column)]
    for column in results:
        values = stats[column][np.isfinite(stats[column])]
        if metric_name(column) in DIRECTIONS and len(values):
            at = (direction(column) * values).idxmax()
            epoch = int(stats["epoch"][at]) if "epoch" in stats else None  # a person has edited it
            best[column] = {"value": float(values[at]), "epoch": epoch}
    if as_json:
        shown = {c: float(last[c]) for c in ("epoch", "step", *results) if c in last}
        plain = {column: x if math.isfinite(x) else None for column, x in shown.items()}
        plain |= {c: int(last[c]) for c in ("epoch", "step") if c in last}
        return json.dumps({"output_dir": folder, "last": plain, "best": best}, indent=1)
    lines = [f"{'':<20} {'last':>9} {'best':>9}  in epoch"] * (len(stats) > 1)
    for column in results:
        line = f"{one_line(column):<20} {last[column]:>9.4f}"
        if len(stats) > 1 and column in best:
            line += f" {best[column]['value']:>9.4f}  {best[column]['epoch'] or '':>8}"
        lines.append(line)
    if folder:
        lines.append(f"{'run folder':<20} {folder}")
        for what, name in (("learning curves", "curves.png"), ("best weights", BEST_WEIGHTS)):
            if (path := Path(folder) / name).exists():
                lines.append(f"{what:<20} {path}")
    return "\n".join(lines)


# ---- arrays/ -----------------------------------------------------------------------------


def append_arrays(run_folder: Path, row: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write row `row`, counted from 0, of each column; what a killed attempt has left from there
    on is gone. Raises UserError where an array has another shape than before.

    arrays: float64.
    """
    folder = run_folder / ARRAYS
    values: dict[str, Any] = {c.replace("/", ".") + ".npy": x for c, x in arrays.items()}
    if values:
        folder.mkdir(exist_ok=True)
    for name in sorted(values.keys() | {path.name for path in _array_files(folder)}):
        path, value = folder / name, cast(Any, values.get(name))
        shape, start = _read_header(path)
        if value is None and (shape is None or shape[0] <= row):
            continue
        if shape is None:
            np.save(path, np.empty((0, *value.shape)))
            shape, start = _read_header(path)
        if value is not None and value.shape != shape[1:]:
            shapes = f"{value.shape}, and had {shape[1:]} before"
            words = f"an array of the shape {shapes}; fill it up, or give it another name"
            raise UserError(f"{_column(path)}: {words}")
        with open(path, "r+b") as file:
            if value is not None:
                num_missing = max(0, row - shape[0])
                file.seek(start + (row - num_missing) * value.nbytes)
                file.write(np.full((num_missing, *value.shape), np.nan).tobytes() + value.tobytes())
                file.flush()
                os.fsync(file.fileno())
            file.seek(0)
            length = row + (value is not None)
            header = {"descr": "<f8", "fortran_order": False, "shape": (length, *shape[1:])}
            npy.write_array_header_1_0(file, header)


def _array_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.npy") if ARRAY_FILE.fullmatch(path.name))


def _read_header(path: Path) -> tuple[Any, int]:
    """(shape, where the rows begin); (None, 0) where there is no file, a process was killed when it
    made the file, or it is not ours. A row that its file does not hold does not count."""
    try:
        with open(path, "rb") as file:
            npy.read_magic(file)
            shape, _, dtype = npy.read_array_header_1_0(file)
            start = file.tell()
    except (FileNotFoundError, ValueError):
        return None, 0
    if dtype != np.float64 or not shape:
        return None, 0
    num_rows = (path.stat().st_size - start) // max(8 * math.prod(shape[1:]), 1)
    return (min(shape[0], num_rows), *shape[1:]), start


def _column(path: Path) -> str:
    """'train.norms' -> 'train/norms'; the name of a split may hold dots."""
    name = path.name.removesuffix(".npy")
    return "/".join(name.rsplit(".", 1 if name.startswith("train.") else 2))
