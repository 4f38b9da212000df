"""Data sets of the Hugging Face hub: fetched once, and read from disk where the hub is silent.

What is prepared stands below data_dir. The files as they were fetched stay in the hub's own
cache (HF_HOME), which other programs share; the library takes no other place for them.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger

from src.support import UserError, bad_value, write_atomically

NOTES = "asked_for.json"
COMMIT = r"[0-9a-f]{40}"
SECONDS_TO_ANSWER = 5.0  # the library itself tries for 23 seconds, and for each file


def silence() -> None:
    """What the two libraries say goes to nobody but a terminal's progress bars."""
    import sys

    import datasets
    import huggingface_hub

    datasets.logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def why_out_of_reach() -> str | None:
    """Why the hub does not answer; None where it does."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER)
    except Exception as error:  # of whichever library it has for HTTP
        return f"{constants.ENDPOINT} does not answer: {type(error).__name__}"
    return None


def open_hub_set(
    name: str, *, configuration: str | None, revision: str | None, cache: Path, download: bool
) -> tuple[Any, str]:
    """A builder of the data set, and the revision that it is of.

    The hub is asked for the newest one, unless a commit is given that is on disk already.
    Where it cannot be asked, the newest on disk is taken, with a warning. UserError.
    """
    asked = Asked(name, configuration, revision)
    is_fixed = re.fullmatch(COMMIT, revision or "")  # unlike a tag or a branch
    if is_fixed and (found := _on_disk(asked, cache)):
        return _from_disk(name, found), found.name
    reason = why_out_of_reach() if download else "data_download is false"
    if reason is None:
        from datasets import load_dataset_builder

        builder = load_dataset_builder(name, configuration, revision=revision, cache_dir=str(cache))
        _note(asked, cache, [builder.config.name, builder.hash])
        return builder, builder.hash
    found = _on_disk(asked, cache)
    if not found:
        of = f" of revision {revision}" if revision else ""
        raise UserError(f"dataset: hf/{name}{of} is not in {cache}, and {reason}")
    configuration, _, revision = found.parts[-3:]
    logger.warning(
        "hf/{}:{} as it was fetched: revision {}, as {}", name, configuration, revision, reason
    )
    return _from_disk(name, found), revision


# ---- What is on disk ---------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What somebody asked for: a name, and perhaps a configuration and a revision, which may be
    a tag or a branch."""

    name: str
    configuration: str | None
    revision: str | None

    def folder(self, cache: Path) -> Path:
        """Of all that was fetched of it, as the library names it."""
        from datasets.naming import camelcase_to_snakecase

        *owner, own = self.name.split("/")
        return cache / "___".join([*owner, camelcase_to_snakecase(own)])

    def __str__(self) -> str:
        return f"{self.configuration or ''}@{self.revision or ''}"


def _notes(asked: Asked, cache: Path) -> dict[str, list[str]]:
    """What was asked for -> which configuration and revision that was."""
    try:
        return json.loads((asked.folder(cache) / NOTES).read_text())
    except (OSError, ValueError):
        return {}


def _note(asked: Asked, cache: Path, found: list[str]) -> None:
    notes = _notes(asked, cache)
    if notes.get(str(asked)) != found:
        asked.folder(cache).mkdir(parents=True, exist_ok=True)
        text = json.dumps(notes | {str(asked): found}, indent=1)
        write_atomically(asked.folder(cache) / NOTES, text.encode())


def _on_disk(asked: Asked, cache: Path) -> Path | None:
    """The folder SET/CONFIGURATION/VERSION/REVISION, of several the newest; UserError where it
    is not known which configuration is meant."""
    notes = _notes(asked, cache)
    configuration, revision = notes.get(str(asked), [asked.configuration, asked.revision])
    if configuration is None:  # it is what it was when another revision was asked for
        configuration = next((own for was, (own, _) in notes.items() if was[0] == "@"), None)
    if asked.revision is None:
        revision = None  # the newest
    pattern = f"{configuration or '*'}/*/{revision or '*'}/dataset_info.json"
    found = [file.parent for file in asked.folder(cache).glob(pattern)]
    known = sorted({folder.parts[-3] for folder in found})
    if configuration is None and known not in ([], ["default"]):
        expected = f"one of its configurations: {', '.join(f'hf/{asked.name}:{k}' for k in known)}"
        raise bad_value("dataset", f"hf/{asked.name}", expected)
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def _from_disk(name: str, folder: Path) -> Any:
    """A builder of what is in a folder."""
    from datasets.packaged_modules.cache.cache import Cache

    configuration, version, revision = folder.parts[-3:]
    return Cache(
        cache_dir=str(folder.parents[3]),
        dataset_name=name.rpartition("/")[2],
        repo_id=name,
        config_name=configuration,
        version=version,
        hash=revision,
    )
