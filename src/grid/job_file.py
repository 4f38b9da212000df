"""A job file: what a batch is called, where it goes, and the grid of its runs."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config import KEYS, read_yaml_file
from src.grid.expand import Mistakes, expand_grid, places_of
from src.grid.folders import LONGEST_BATCH, slug
from src.support import UserError, bad_value, unknown_name

MOST_VALUES = 400_000  # of a file that lists some 10,000 rows one by one
MOST_NAMED = 5  # unknown keys
TOP_KEYS = ("job_details", "parameters")
# keys of a run that are said once for the batch
PASSED_ON = ("trackers", "wandb", "wandb_project_name", "wandb_tags")
DETAILS = ("name", "output_dir", *PASSED_ON)


@dataclass(frozen=True)
class Job:
    """common: keys that each run is given, next to its row. text: the file as it is."""

    name: str
    output_dir: str
    common: dict[str, Any]
    parameters: dict[str, Any]
    text: str

    @property
    def batch_name(self) -> str:
        """What its batch folder is called, without the day."""
        return slug(self.name, LONGEST_BATCH - 9)

    def runs(self) -> list[dict[str, Any]]:
        """The configuration of each run: keys and values that are not the defaults."""
        return [{**self.common, **row} for row in expand_grid(self.parameters).rows]


def read_job(path: str | Path) -> Job:
    """The job of a YAML file. Raises UserError, a line a mistake, also of the grid's spelling."""
    job, errors = try_job(path)
    if errors:
        raise UserError("\n".join(errors))
    return job


def try_job(path: str | Path) -> tuple[Job, list[str]]:
    """(the job, mistakes); UserError for a file that is not there or is no job file."""
    content = read_yaml_file(path, most_values=MOST_VALUES)
    if isinstance(content, dict) and content.keys() & KEYS.keys():
        raise UserError(f"{path}: is the configuration of one run: python train.py {path}")
    if not isinstance(content, dict) or content.get("parameters") is None:
        raise UserError(f"{path}: expected `parameters:` with a line `key: values` for each key")
    mistakes = Mistakes()
    with mistakes.noted():
        _refuse_unknown(str(path), content, TOP_KEYS)
    details = content.get("job_details") or {}
    if not isinstance(details, dict):
        with mistakes.noted():
            raise bad_value("job_details", details, f"a mapping with keys of {', '.join(DETAILS)}")
        details = {}
    with mistakes.noted():
        _refuse_unknown("job_details", details, DETAILS)
    given = {key: value for key, value in details.items() if value is not None}
    common = {key: given[key] for key in PASSED_ON if key in given}
    texts = {"name": Path(path).stem, "output_dir": "results"}
    for key, default in texts.items():
        with mistakes.noted():
            texts[key] = _text(key, given.get(key, default))
    places, errors = places_of(content["parameters"])
    mistakes.lines |= dict.fromkeys(errors)
    with mistakes.noted():
        _refuse_set_elsewhere(places, common)
    job = Job(
        name=texts["name"],
        output_dir=os.path.expanduser(texts["output_dir"]),
        common=common,
        parameters=content["parameters"],
        text=Path(path).read_bytes().decode(),  # with its own line ends
    )
    return job, list(mistakes.lines)


def _refuse_unknown(where: str, block: Mapping[Any, Any], known: Iterable[str]) -> None:
    unknown = [str(key) for key in block if key not in known]
    lines = [str(unknown_name(where, key, known)) for key in unknown[:MOST_NAMED]]
    lines += [f"{where}: … and {len(unknown) - MOST_NAMED:,} more"] * (len(unknown) > MOST_NAMED)
    if lines:
        raise UserError("\n".join(lines))


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise bad_value(f"job_details.{key}", value, "a text that is not empty")
    return value


def _refuse_set_elsewhere(places: Mapping[str, str], common: Mapping[str, Any]) -> None:
    """UserError for keys of the grid that are the batch's alone."""
    lines = [
        f"{key}: set twice, at job_details.{key} and at {places[key]}"
        for key in common
        if key in places
    ]
    if "output_dir" in places:
        lines.append(
            f"{places['output_dir']}: each run gets its own folder; job_details.output_dir says "
            "where the batch goes"
        )
    if lines:
        raise UserError("\n".join(lines))
