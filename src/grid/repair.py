"""Before anything runs: a batch that was moved or copied is made to run where it is, and rows
that were deleted are made again.

A row's spec.yaml holds its folder as output_dir: where it names another one, the batch was made
there. The original, if it is still there, is left alone.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from src.config import read_yaml_file, write_yaml
from src.grid.folders import PATH_KEYS, Batch, Row, is_copy, is_elsewhere, spec_home, write_spec
from src.grid.job_file import read_job
from src.grid.journal import Journal
from src.grid.snapshot import frozen_copies, repository_of
from src.support import UserError, write_atomically


@dataclass
class Repaired:
    """What was done, or would be."""

    moved: list[str] = field(default_factory=list)  # rows that named another folder as theirs
    made_again: list[str] = field(default_factory=list)  # rows without a spec.yaml
    broken: dict[str, str] = field(default_factory=dict)  # row -> why it cannot run


def repair_batch(batch: Batch, root: Path, *, is_dry: bool = False) -> Repaired:
    """Make the batch fit to run where it is; a row that cannot be does not stop the others.

    root: the repository. The journal goes first, the row's spec.yaml last: after a crash, call
    it again.
    """
    done = Repaired()
    journal = Journal(batch.submissions)
    if journal.is_of_elsewhere and not is_dry:
        kept = (batch.submissions / f"journal.old.{number}.jsonl" for number in count(1))
        os.replace(journal.path, next(path for path in kept if not path.exists()))
    for row in batch.rows:
        try:
            size = 0  # a power cut may leave an empty file
            with suppress(FileNotFoundError):
                size = row.spec.stat().st_size
            if not size:
                if not is_dry:  # from the index, and the job file for keys that all rows share
                    write_spec(row, read_job(batch.path / "job.yaml").common, root)
                done.made_again.append(row.name)
            elif is_elsewhere(row.folder):
                if not is_dry:
                    _move_here(row, root)
                done.moved.append(row.name)
        except OSError as error:
            done.broken[row.name] = f"{error.filename}: {error.strerror}"
        except UserError as error:
            done.broken[row.name] = str(error)
    for code in frozen_copies(batch.path) if done.moved and not is_dry else ():
        # Links of frozen code to a repository that was moved lead to where it is now.
        old = repository_of(code)
        if old.exists():  # or the copy does not say where it comes from
            continue
        for link in code.rglob("*"):
            if link.is_symlink() and not link.exists():
                target = Path(os.readlink(link))
                if target.is_relative_to(old) and (root / target.relative_to(old)).exists():
                    link.unlink()
                    link.symlink_to(root / target.relative_to(old))
    return done


def _move_here(row: Row, root: Path) -> None:
    """Its configurations name this folder; nobody who runs in the original holds it."""
    spec, home = _mapping(row.spec), spec_home(row.folder)
    if home and is_copy(row.folder):
        with suppress(OSError):
            # the first line is a counter, which rises while the owner lives
            owners = [(f / "claim").read_bytes().partition(b"\n")[2] for f in (row.folder, home)]
            if owners[0] == owners[1]:
                (row.folder / "claim").unlink()
        with suppress(OSError, ValueError, RecursionError):
            status = json.loads((row.folder / "status.json").read_text())
            if isinstance(status, dict) and status.get("state") == "running":
                write_atomically(row.folder / "status.json", json.dumps(status | {"state": "lost"}))
    here = {"output_dir": str(row.folder)}
    with suppress(UserError, OSError):  # one that cannot be read does not keep it from running
        config = _mapping(row.folder / "config.yaml")
        write_atomically(row.folder / "config.yaml", write_yaml(config | here))
    for key in PATH_KEYS:  # files that have moved together with the repository
        given, path = row.values.get(key), spec.get(key)
        if isinstance(given, str) and isinstance(path, str) and not os.path.exists(path):
            moved = os.path.abspath(root / given)
            spec[key] = moved if os.path.exists(moved) else path
    write_atomically(row.spec, write_yaml(spec | here))


def _mapping(path: Path) -> dict[str, Any]:
    content = read_yaml_file(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected lines of the form `key: value`")
    return content
