"""A job file: what a batch is called, where it goes, and the grid of its runs."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config import KEYS
from src.names import UserError, bad_value, unknown_name
from src.submit.grid import places_of
from src.yaml_files import read_yaml_file

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


def read_job(path: str | Path) -> Job:
    """The job of a YAML file; UserError for one that is not there or says what can't be meant."""
    content = read_yaml_file(path)
    if isinstance(content, dict) and content.keys() & KEYS.keys():
        raise UserError(f"{path}: is the configuration of one run: python train.py {path}")
    if not isinstance(content, dict) or content.get("parameters") is None:
        raise UserError(f"{path}: expected `parameters:` with a line `key: values` for each key")
    _refuse_unknown(str(path), content, TOP_KEYS)
    details = content.get("job_details") or {}
    if not isinstance(details, dict):
        raise bad_value("job_details", details, f"a mapping with keys of {', '.join(DETAILS)}")
    _refuse_unknown("job_details", details, DETAILS)
    given = {key: value for key, value in details.items() if value is not None}
    common = {key: given[key] for key in PASSED_ON if key in given}
    _refuse_set_elsewhere(content["parameters"], common)
    return Job(
        name=_text("name", given.get("name", Path(path).stem)),
        output_dir=os.path.expanduser(_text("output_dir", given.get("output_dir", "results"))),
        common=common,
        parameters=content["parameters"],
        text=Path(path).read_bytes().decode(),  # with its own line ends
    )


def _refuse_unknown(where: str, block: Mapping[Any, Any], known: Iterable[str]) -> None:
    for key in block:
        if key not in known:
            raise unknown_name(where, str(key), known)


def _text(key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise bad_value(f"job_details.{key}", value, "a text that is not empty")
    return value


def _refuse_set_elsewhere(parameters: Mapping[str, Any], common: Mapping[str, Any]) -> None:
    """UserError for keys of the grid that are the batch's alone."""
    places = places_of(parameters)
    if "output_dir" in places:
        raise UserError(
            f"{places['output_dir']}: each run gets its own folder; job_details.output_dir says "
            "where the batch goes"
        )
    for key in common:
        if key in places:
            raise UserError(f"{key}: set twice, at job_details.{key} and at {places[key]}")
