"""The batch folder: a folder a row, the job file, an index. This module owns its format.

OUTPUT_DIR/YY-MM-DD-NAME/
  job.yaml         the job file; an older one is kept as job.old.K.yaml
  rows.jsonl       a line a row: its folder and its values, as the grid gave them
  code/            the frozen code, code.2/ a later one (src/grid/snapshot.py)
  submissions/     what was requested of Slurm (journal.py), tasks of stacks, workers (run_queue.py)
  NNN_BATCH+key=value+…/
    spec.yaml      what train.py is called with
    job.log        all that the job printed
"""

import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from src.config import read_yaml, read_yaml_file, write_yaml
from src.support import ROOT, UserError, write_atomically

LONGEST_NAME = 120  # bytes of a row's folder; file systems take 255, people less
LONGEST_BATCH = 60
PATH_KEYS = ("data_dir", "model_weights")  # relative ones are meant from the repository's root
# (most characters of a part of a key, most of a value), tried until all names of a batch fit
SHORTER = ((99, 48), (99, 24), (4, 24), (4, 16), (3, 12), (3, 8), (2, 8), (2, 5), (1, 3))
DIGITS = 4  # of a float; rows.jsonl and spec.yaml hold it whole


@dataclass(frozen=True)
class Row:
    """A run of a batch: its folder and its configuration."""

    folder: Path  # absolute
    values: dict[str, Any]  # as the grid gave them

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def spec(self) -> Path:
        return self.folder / "spec.yaml"

    @property
    def log(self) -> Path:
        return self.folder / "job.log"


@dataclass(frozen=True)
class Batch:
    """A batch folder and the rows of its index, by number."""

    path: Path  # absolute
    rows: list[Row]
    damage: str = field(default="", compare=False)  # what of the index could not be read

    @cached_property
    def varying(self) -> list[str]:
        """The keys in which its rows differ."""
        return varying_keys([row.values for row in self.rows])

    @property
    def submissions(self) -> Path:
        return self.path / "submissions"

    @property
    def is_ours(self) -> bool:
        return self.path.stat().st_uid == os.getuid()


def open_batch(path: str | Path) -> Batch:
    """The batch of a folder; without an index, its subfolders that hold a spec.yaml.

    A line of the index that cannot be read does not hide the other rows; see `damage`.
    Raises UserError where there is no such folder, or nothing of a batch in it.
    """
    folder = Path(os.path.abspath(path))
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder")
    if not (folder / "rows.jsonl").exists():
        rows = _rows_of_specs(folder)
        if not rows and not (folder / "job.yaml").exists():
            raise UserError(f"{path}: no batch (it has neither rows.jsonl nor */spec.yaml)")
        return Batch(folder, rows)
    rows, problems = list[Row](), list[UserError]()
    for number, line in enumerate(_lines_of_index(folder)):
        try:
            rows.append(_row_of_line(folder, line))
        except UserError as error:  # the row is the folder with its number
            if not problems:  # read once: a batch may have many rows
                specs = {row.name.partition("_")[0]: row for row in _rows_of_specs(folder)}
                by_number = {name.lstrip("0") or "0": row for name, row in specs.items()}
            rows += [by_number[str(number)]] if str(number) in by_number else []
            problems.append(error)
    if problems and not rows:
        raise problems[0]
    more = f" and {len(problems) - 1:,} more lines" if len(problems) > 1 else ""
    damage = f"{problems[0]}{more}; such rows are taken from their folders" if problems else ""
    return Batch(folder, rows, damage)


def _lines_of_index(folder: Path) -> list[str]:
    try:
        return (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'rows.jsonl'}: cannot be read ({error})") from None


def _row_of_line(folder: Path, line: str) -> Row:
    try:
        entry = json.loads(line)
        name, values = entry["folder"], entry["values"]
        is_name = Path(name).name == name and name not in ("", ".", "..") and "\0" not in name
        if not isinstance(values, dict) or not is_name:
            raise ValueError(f"no row: {line[:80]}")
        if "\\u" in line:  # half a character is no text, and no name of a file; nor is a control
            json.dumps(entry, ensure_ascii=False).encode()
            if not name.isprintable():
                raise ValueError(f"no name of a folder: {name[:80]!r}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{folder / 'rows.jsonl'}: cannot be read ({error})") from None
    return Row(folder / name, values)


def _rows_of_specs(folder: Path) -> list[Row]:
    rows = []
    for spec in sorted(folder.glob("*/spec.yaml")):
        values: object = None
        with suppress(UserError):  # a broken file is a row all the same
            values = read_yaml_file(spec)
        given = values.items() if isinstance(values, dict) else ()
        rows.append(Row(spec.parent, {str(k): v for k, v in given if k != "output_dir"}))
    return rows


# ---- What a run asks for ------------------------------------------------------------------


def row_identity(row: Mapping[str, Any]) -> frozenset[Any]:
    """Equal for runs that ask for the same: a key that is null is as one that is missing."""
    return frozenset((key, same(value)) for key, value in row.items() if value is not None)


def same(value: Any) -> Any:
    """Hashable, equal for equal values: 1 is 1.0, but True is no number."""
    if isinstance(value, list | tuple):
        return ("list", *map(same, value))
    if isinstance(value, Mapping):
        return ("mapping", frozenset((key, same(item)) for key, item in value.items()))
    return ("boolean", value) if isinstance(value, bool) else value


# ---- Where a row was made ----------------------------------------------------------------


def spec_home(folder: Path) -> Path | None:
    """The folder that spec.yaml names as output_dir; None where none can be read from it."""
    try:
        text = (folder / "spec.yaml").read_text(encoding="utf-8")
        if f"output_dir: {folder}\n" in text:
            return folder  # ten thousand rows are looked at in a moment
        content = read_yaml(text)
    except (OSError, ValueError):
        return None
    home = content.get("output_dir") if isinstance(content, dict) else None
    return ROOT / os.path.expanduser(home) if isinstance(home, str) and home else None


def is_elsewhere(folder: Path) -> bool:
    """Whether a row was made in another folder: it was moved or copied to this one."""
    home = spec_home(folder)
    if home is None or home == folder:
        return False
    try:
        return not os.path.samefile(home, folder)  # by a link, or another mount
    except (OSError, ValueError):
        return True


def is_copy(folder: Path) -> bool:
    """Whether the folder in which the row was made is still there."""
    home = spec_home(folder)
    return home is not None and is_elsewhere(folder) and os.path.isdir(home)


def count_runs(number: int) -> str:
    return f"{number:,} run" + "s" * (number != 1)


# ---- Names -------------------------------------------------------------------------------


def batch_name(name: str, today: date) -> str:
    """'Wide nets!', 22 November 2026 -> '26-11-22-Wide-nets'."""
    return f"{today:%y-%m-%d}-{slug(name, LONGEST_BATCH - 9)}"


def slug(text: str, most: int) -> str:
    """text in letters, digits and ._- alone, which mean nothing to shells and to Slurm."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", plain.replace("--", "-"))
    return plain[:most].strip("-.") or "x"


def row_names(first: int, batch: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """'007_26-11-22-x+base_lr=0.1+model=linear': the number, the batch, what varies.

    Keys and values are shortened alike in all rows, so that a pattern finds them.
    """

    def short_key(key: str, most: int) -> str:
        return "_".join(part[:most] for part in slug(key, LONGEST_NAME).split("_"))

    width = max(3, len(str(first + len(rows) - 1)))
    names = []
    for most_key, most_value in SHORTER:
        names = [
            "+".join(
                [f"{number:0{width}d}_{batch}"]
                + [f"{short_key(k, most_key)}={_value(row[k], most_value)}" for k in row]
            )
            for number, row in enumerate(rows, first)
        ]
        if max(map(len, names), default=0) <= LONGEST_NAME:
            break
    return [n if len(n) <= LONGEST_NAME else n[:LONGEST_NAME].rstrip("+=-._") for n in names]


def _value(value: Any, most: int) -> str:
    if isinstance(value, float):
        return f"{value:.{DIGITS}g}".replace("+", "")  # cut, it would be another number
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)[:LONGEST_BATCH]
    return slug(value if isinstance(value, str) else json.dumps(value, default=str), most)


def varying_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys whose value is not the same in all rows, a missing one being null."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [key for key in keys if any(row.get(key) != rows[0].get(key) for row in rows)]


# ---- Writing -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a job file adds to a batch."""

    batch: Batch  # as it will be: the rows that are there, then the new ones
    wanted: list[Row]  # the rows of the job file, in its order
    num_new: int
    job_text: str
    common: dict[str, Any]  # keys of every spec

    @property
    def num_others(self) -> int:
        """Rows of the folder that the job file does not ask for."""
        return len(self.batch.rows) - len(self.wanted)

    @property
    def summary(self) -> str:
        """'108 runs new', '12 runs new, 108 runs of an earlier call'."""
        parts = (
            (self.num_new, "new"),
            (len(self.wanted) - self.num_new, "of an earlier call"),
            (self.num_others, "that this job file does not ask for, left alone"),
        )
        return ", ".join(f"{count_runs(number)} {what}" for number, what in parts if number)


def plan_batch(
    folder: Path, grid: Sequence[dict[str, Any]], *, job_text: str, common: Mapping[str, Any]
) -> Plan:
    """Rows that the folder holds keep their number and folder; others come after them."""
    lines = _lines_of_index(folder) if (folder / "rows.jsonl").exists() else []
    rows = [_row_of_line(folder, line) for line in lines]
    known = {row_identity(row.values): row for row in rows}
    new = [values for values in grid if row_identity(values) not in known]
    varying = varying_keys([row.values for row in rows] + new)
    shown = [{key: values[key] for key in varying if key in values} for values in new]
    names = row_names(len(rows), folder.name, shown)
    rows += [Row(folder / name, values) for name, values in zip(names, new, strict=True)]
    known = {row_identity(row.values): row for row in rows}
    wanted = [known[row_identity(values)] for values in grid]
    return Plan(Batch(folder, rows), wanted, len(new), job_text, dict(common))


def write_batch(plan: Plan, root: Path) -> None:
    """Make the folders. What is there already stays, another job file as job.old.K.yaml; after a
    crash, call it again. The index comes first: a folder of the batch is one that it names."""
    batch = plan.batch
    try:
        batch.submissions.mkdir(parents=True, exist_ok=True)
        job = batch.path / "job.yaml"
        earlier = job.read_text(encoding="utf-8") if job.exists() else None
        if earlier not in (None, plan.job_text):
            old = [path.name.split(".")[2] for path in batch.path.glob("job.old.[0-9]*.yaml")]
            os.replace(job, batch.path / f"job.old.{max(map(int, old), default=0) + 1}.yaml")
        if earlier != plan.job_text:
            write_atomically(job, plan.job_text)
        entries = ({"folder": row.name, "values": row.values} for row in batch.rows)
        text = "".join(json.dumps(entry, default=str) + "\n" for entry in entries)
        index = batch.path / "rows.jsonl"
        if not index.exists() or index.read_text(encoding="utf-8") != text:
            write_atomically(index, text)
        for row in batch.rows:
            if not row.spec.exists():
                write_spec(row, plan.common, root)
    except OSError as error:
        raise UserError(f"output_dir: cannot write {error.filename}: {error.strerror}") from None


def write_spec(row: Row, common: Mapping[str, Any], root: Path) -> None:
    """What train.py is called with: paths absolute, as it may run from a copy of the code."""
    spec = {**common, **row.values, "output_dir": str(row.folder)}
    if spec.get("wandb") or spec.get("trackers"):
        spec.setdefault("wandb_run_name", row.name)
    for key in PATH_KEYS:
        if isinstance(spec.get(key), str):
            spec[key] = os.path.abspath(root / os.path.expanduser(spec[key]))
    row.folder.mkdir(exist_ok=True)
    write_atomically(row.spec, write_yaml(spec), durable=False)


def check_writable(folder: Path) -> None:
    """Raises UserError where no batch can be made there; makes nothing."""
    nearest = next(p for p in (folder, *folder.parents) if p.exists() or p.is_symlink())
    if not nearest.is_dir():
        reason = "a link to nothing" if nearest.is_symlink() else "not a folder"
        raise UserError(f"output_dir: cannot write to {folder}: {nearest} is {reason}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"output_dir: cannot write to {folder}: {nearest} is not yours to write")


def delete_batch(batch: Batch) -> None:
    """Remove the folder with all that is in it; what its links lead to stays."""
    if batch.path.is_symlink():
        raise UserError(f"-o: {batch.path} is a link; delete what it leads to yourself")
    doomed = batch.path.with_name(f".{batch.path.name}.deleted.{os.getpid()}")
    os.rename(batch.path, doomed)  # half a batch is never seen
    shutil.rmtree(doomed)


def earlier_batches(output_dir: Path, name: str) -> list[Path]:
    """Folders of the same name, the newest day first."""
    pattern = re.compile(rf"\d\d-\d\d-\d\d-{re.escape(slug(name, LONGEST_BATCH - 9))}")
    found = sorted(output_dir.iterdir(), reverse=True) if output_dir.is_dir() else []
    return [path for path in found if pattern.fullmatch(path.name) and path.is_dir()]


@contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """One submission a batch at a time."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another submit_multiple.py is at work on {folder.name}") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()
