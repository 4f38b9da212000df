"""Whether a configuration asks for the run that a folder holds, for more of it, or for another."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from loguru import logger

from src.config import (
    FOUND_IN_DATA,
    KEYS,
    MAX_ALLOWED_LOSS,
    Config,
    make_config,
    read_saved_config,
    save_config,
)
from src.grid import WITHOUT_EFFECT
from src.logging.own_files import is_run_folder
from src.logging.trackers.tracked import read_json
from src.runtime import StepSchedule
from src.support import UserError

FOUND: set[str] = FOUND_IN_DATA | {"batch_size_accum", "max_allowed_loss"}
# Schedules whose learning rate at a step does not depend on the length of the run
ENDLESS = ("constant", "poly")


class OtherRun(UserError):  # noqa: N818 - says what is the matter
    """The folder's run is not the one asked for; nothing in the folder is to change."""


def is_finished(config: Config) -> bool:
    """Whether config.output_dir holds the finished run of this very config.

    Not where it asks for a longer one. Raises UserError where it holds another run.
    """
    if not (folder := _finished_folder(config)):
        return False
    differing = differing_keys(config, _configs_of(folder))
    if differing and not _is_longer(config, _configs_of(folder)):
        raise _other_run(folder, "finished", differing)
    return not (differing and _reached_its_length(folder))


def is_longer(config: Config) -> bool:
    """Whether it asks to go on with a finished run."""
    folder = _finished_folder(config)
    if folder is None or not _reached_its_length(folder):
        return False
    return _is_longer(config, _configs_of(folder))


def continued(config: Config, saved: Mapping[str, Any]) -> Config:
    """The configuration in force from now on, with what earlier attempts have drawn and found.

    saved: those asked for and in force, as plain values. Raises UserError where config asks
    for another run.
    """
    earlier = _configs_of_state(saved)
    differing = differing_keys(config, earlier)
    if differing and not _is_longer(config, earlier):
        raise _other_run(config.output_dir, "unfinished", differing)
    free = {key: getattr(config, key) for key in [*WITHOUT_EFFECT, "train_length"]}
    return replace(earlier[0], **free)


def _other_run(folder: str | Path | None, kind: str, differing: Sequence[str]) -> OtherRun:
    article = "an" if kind == "unfinished" else "a"
    hint = f" (only a longer one may, with {' or '.join(ENDLESS)})"
    return OtherRun(
        f"output_dir: {folder} holds {article} {kind} run that differs in {', '.join(differing)}"
        + hint * (list(differing) == ["train_length"])
        + "; choose another output_dir, or delete that folder"
    )


def numbered(folder: Path) -> Iterator[Path]:
    """x, x-2, x-3, …"""
    yield folder
    yield from (folder.with_name(f"{folder.name}-{number}") for number in count(2))


def folder_for(asked: Config, name: str) -> tuple[Path, bool]:
    """The folder of a run that was given none, and whether an earlier attempt at it goes on there.

    results/NAME, or NAME-2, NAME-3, … where that holds another run, a finished one, or what is not
    ours. It exists then, with its spec.yaml, so that no other run takes it. Raises UserError.
    """
    for folder in numbered(Path("results", name.strip(".") or "run")):
        while not os.path.lexists(folder) or _is_empty(folder):
            if _make(folder, asked):
                return folder, False
        if not is_run_folder(folder) or os.path.lexists(folder / "done"):
            continue
        if _never_began(folder):
            save_config(replace(asked, output_dir=str(folder)), folder / "spec.yaml")
            return folder, False
        with suppress(UserError):
            if not differing_keys(asked, [read_saved_config(folder / "spec.yaml")]):
                return folder, True
    raise AssertionError("numbers do not end")


def _is_empty(folder: Path) -> bool:
    try:
        return not os.listdir(folder)
    except OSError:  # a file, or not ours to read
        return False


def _make(folder: Path, asked: Config) -> bool:
    """Make a folder with its spec.yaml, in one step; False where another process was faster."""
    new = folder.with_name(f".new.{secrets.token_hex(8)}")
    try:
        new.mkdir(parents=True)
        save_config(replace(asked, output_dir=str(folder)), new / "spec.yaml")
    except OSError as error:
        raise UserError(f"output_dir: cannot write to {folder}: {error.strerror}") from None
    try:
        os.rename(new, folder)  # onto an empty folder as well
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise UserError(f"output_dir: cannot write to {folder}: {error.strerror}") from None
    return True


def _never_began(folder: Path) -> bool:
    """A wrong name, say, has ended the only attempt before there was anything of a run."""
    has_ended = read_json(folder / "status.json").get("state", "running") != "running"
    return has_ended and not any(
        os.path.lexists(folder / name) for name in ("config.yaml", "state", "stats.csv")
    )


def check_same_data(config: Config, found: dict[str, int], *, is_continued: bool) -> None:
    """A config.yaml that runs again should meet the data that it met before; a state must.

    found: split -> number of examples. Raises UserError.
    """
    if config.data_n_examples not in (None, found):
        words = f"data_n_examples: was {config.data_n_examples}, now {found}"
        if is_continued:
            raise OtherRun(f"{words}; the run cannot go on with other data; choose another folder")
        logger.warning(words)


def check_same_epochs(step_schedule: StepSchedule, num_steps: int, rows: Sequence[Mapping]) -> None:
    """A run that is made longer must have ended with a whole epoch. Raises UserError."""
    last = rows[-1] if rows else {"epoch": 0, "step": 0}
    if last["step"] < num_steps and last["step"] != step_schedule.epoch_end(last["epoch"]):
        raise OtherRun(
            f"train_length: the run ended at step {last['step']}, in the middle of epoch "
            f"{last['epoch']}, which a longer run would not have; choose another output_dir"
        )


def differing_keys(config: Config, earlier: Sequence[Config]) -> list[str]:
    """The keys in which config differs from the nearest of those: as asked, or as in force."""
    differing = [[key for key in KEYS if _differs(key, config, one)] for one in earlier]
    return min(differing, key=len, default=[])


def _differs(key: str, config: Config, earlier: Config) -> bool:
    if key in WITHOUT_EFFECT:
        return False
    value, before = getattr(config, key), getattr(earlier, key)
    if key == "max_allowed_loss":  # older copies have written the default where none was given
        return value != before and (value, before) != (None, MAX_ALLOWED_LOSS)
    if key in FOUND and None in (value, before):  # one was asked, one in force
        return False
    return value != before


def _is_longer(config: Config, earlier: Sequence[Config]) -> bool:
    is_endless = config.lr_schedule.partition("_")[0] in ENDLESS
    is_more = all(config.train_length > one.train_length for one in earlier)
    return is_endless and is_more and differing_keys(config, earlier) == ["train_length"]


def _finished_folder(config: Config) -> Path | None:
    if not config.output_dir:
        return None
    folder = Path(config.output_dir)
    is_ended = all(os.path.isfile(folder / name) for name in ("done", "stats.csv"))
    return folder if is_ended and is_run_folder(folder) else None


def _reached_its_length(folder: Path) -> bool:
    """Not stopped early, and not diverged: those a longer run would not change."""
    return _done(folder).get("outcome") == "finished"


def _done(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / "done").read_text())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError, RecursionError):  # older experiments leave it empty
        return {}


def _configs_of_state(saved: Mapping[str, Any]) -> list[Config]:
    """[in force, asked] of a saved run."""
    try:
        return [make_config(saved["in_force"]), make_config(saved["asked"])]
    except (TypeError, LookupError, AttributeError):
        raise OtherRun("the saved run says nothing of its configuration") from None
    except UserError as error:
        raise OtherRun(f"the saved run is of other code: {error}") from None


def _configs_of(folder: Path) -> list[Config]:
    """As `done` holds them: people edit the files beside it, which older runs have alone."""
    done = _done(folder)
    if {"asked", "in_force"} <= done.keys():
        return _configs_of_state(done)
    configs = []
    for name in ("spec.yaml", "config.yaml"):
        if (folder / name).exists():
            configs.append(read_saved_config(folder / name))
    return configs
