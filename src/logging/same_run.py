"""Which run a folder holds: the one that a configuration asks for, a shorter one, or another.

A run is the same where its configuration differs only in keys that have no effect on results (where
it computes, what it logs). It is made longer where train_length alone has grown and its learning
rate doesn't depend on the length. Compared are two configurations: the requested one (spec.yaml)
and the resolved one (config.yaml), in which what was null is drawn or inferred. Of a finished run
`done` holds both under the names asked and in_force, as a saved state does.
"""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from src.config import KEYS, Config, is_import_path
from src.keys import INFERRED_KEYS, MAX_ALLOWED_LOSS
from src.ranking import NON_SEMANTIC_KEYS
from src.support import UserError

# Schedules whose learning rate at a step does not depend on the length of the run
LENGTH_INDEPENDENT_SCHEDULES = ("constant", "poly")
SIGNS = ("spec.yaml", "status.json", "claim")  # older experiments have the first


class OtherRun(UserError):  # noqa: N818 - says what is the matter
    """The folder's run is not the requested one; nothing in the folder is to change."""


def is_run_folder(folder: Path) -> bool:
    """Whether a run of ours was submitted to it, or started in it."""
    return any(os.path.isfile(folder / sign) for sign in SIGNS)


@contextmanager
def write_errors(folder: Path | None) -> Iterator[None]:
    """What the disk refuses in a run folder is an error of the key output_dir."""
    try:
        yield
    except OSError as error:
        if folder is None:
            raise
        raise UserError(f"output_dir: cannot write to {folder}: {error.strerror}") from None


def read_json(path: Path) -> dict[str, Any]:
    """{} where there is no such file, or a damaged one."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


# ---- Is it the same run? -----------------------------------------------------------------


def is_finished(config: Config) -> bool:
    """Whether config.output_dir holds the finished run of this very config.

    Not where it asks for a longer one. Raises OtherRun where it holds another run.
    """
    folder = Path(config.output_dir or "")
    is_ended = all(os.path.isfile(folder / name) for name in ("done", "stats.csv"))
    if not config.output_dir or not is_ended or not is_run_folder(folder):
        return False
    done = read_json(folder / "done")
    if {"asked", "in_force"} <= done.keys():  # people edit the files beside it
        earlier = _saved_configs(done)
    else:  # older runs have those alone
        paths = [folder / name for name in ("spec.yaml", "config.yaml")]
        earlier = [Config.read(path) for path in paths if path.exists()]
    is_longer = _compare(config, earlier, "a finished")
    # One that stopped early or diverged would be no longer with more steps.
    return not (is_longer and done.get("outcome") == "finished")


def resumed_config(config: Config, saved: Mapping[str, Any]) -> Config:
    """The resolved configuration of a run that resumes, with what earlier attempts have drawn
    and inferred. saved: the two configurations in its state. Raises OtherRun."""
    earlier = _saved_configs(saved)
    _compare(config, earlier, "an unfinished")
    free = {key: getattr(config, key) for key in (*NON_SEMANTIC_KEYS, "train_length")}
    return replace(earlier[0], **free)


def _compare(config: Config, earlier: Sequence[Config], kind: str) -> bool:
    """Whether config makes the run of the earlier ones longer. False: it asks for the same one.
    Raises OtherRun. kind: of the run in the folder, for a person."""
    if not (differing := differing_keys(config, earlier)):
        return False
    hint = ""
    if differing == ["train_length"]:
        is_more = all(config.train_length > one.train_length for one in earlier)
        is_own = is_import_path(config.lr_schedule)  # whose module may be called poly_…
        schedule = config.lr_schedule.partition("_")[0]
        if is_more and not is_own and schedule in LENGTH_INDEPENDENT_SCHEDULES:
            return True
        hint = f" (only a longer one may, with {' or '.join(LENGTH_INDEPENDENT_SCHEDULES)})"
    raise OtherRun(
        f"output_dir: {config.output_dir} holds {kind} run that differs in {', '.join(differing)}"
        f"{hint}; choose another output_dir, or delete that folder"
    )


def differing_keys(config: Config, earlier: Sequence[Config]) -> list[str]:
    """The keys in which config differs from the nearest of those: resolved or requested."""

    def differs(key: str, one: Config) -> bool:
        value, before = getattr(config, key), getattr(one, key)
        if key in NON_SEMANTIC_KEYS or value == before:
            return False
        if key == "max_allowed_loss":  # older copies have written the default where none was given
            return (value, before) != (None, MAX_ALLOWED_LOSS)
        # one may be requested and null, the other resolved
        return key not in INFERRED_KEYS or None not in (value, before)

    differing = [[key for key in KEYS if differs(key, one)] for one in earlier]
    return min(differing, key=len, default=[])


def _saved_configs(saved: Mapping[str, Any]) -> list[Config]:
    """[resolved, requested]"""
    try:
        return [Config.of_saved(saved["in_force"]), Config.of_saved(saved["asked"])]
    except (TypeError, LookupError, AttributeError):
        raise OtherRun("the saved run says nothing of its configuration") from None
    except UserError as error:
        raise OtherRun(f"the saved run is of other code: {error}") from None


# ---- A folder for a run that was given none ----------------------------------------------


def choose_folder(config: Config, name: str) -> tuple[Path, bool]:
    """The folder of a run that was given none, and whether it resumes an earlier attempt there.

    results/NAME, or NAME-2, NAME-3, … where that holds another run, a finished one, or what is not
    ours. It exists then, with its spec.yaml, so that no other run takes it. Raises UserError.
    """
    for folder in _numbered(Path("results", name.strip(".") or "run")):
        own = replace(config, output_dir=str(folder))
        if not is_run_folder(folder):
            new = folder.with_name(f".new.{secrets.token_hex(8)}")
            with write_errors(folder):
                new.mkdir(parents=True)
                try:
                    own.save(new / "spec.yaml")
                    os.rename(new, folder)  # onto an empty folder as well
                    return folder, False
                except OSError as error:
                    shutil.rmtree(new, ignore_errors=True)
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise
        if not is_run_folder(folder) or os.path.lexists(folder / "done"):
            continue
        # A wrong name, say, may have ended the only attempt before there was anything of a run.
        has_ended = read_json(folder / "status.json").get("state", "running") != "running"
        made = (folder / file for file in ("config.yaml", "state", "stats.csv"))
        if has_ended and not any(map(os.path.lexists, made)):
            own.save(folder / "spec.yaml")
            return folder, False
        with suppress(UserError):
            if not differing_keys(config, [Config.read(folder / "spec.yaml")]):
                return folder, True
    raise AssertionError("numbers do not end")


def free_folder(folder: Path) -> Path:
    """The next one in which nothing is, for the same run again: x-3 for x or x-2."""
    first = folder.with_name(re.sub(r"-\d+$", "", folder.name) or folder.name)
    start = first if is_run_folder(first) else folder
    return next(path for path in _numbered(start) if not os.path.lexists(path))


def _numbered(folder: Path) -> Iterator[Path]:
    """x, x-2, x-3, …"""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in count(2))
