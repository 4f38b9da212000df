"""Data sets of the Hugging Face hub: fetched once, then read from disk without asking anybody.

What is prepared stands below data_dir. The files as they were fetched stay in the hub's own
cache (HF_HOME), which other programs share; the library takes no other place for them.
"""

from pathlib import Path
from typing import Any

from loguru import logger

from src.names import UserError, bad_value

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

    The hub is asked which revision is the newest, unless one is given that is on disk already.
    Where it cannot be asked, the newest on disk is taken, with a warning. UserError.
    """
    if revision and (found := _prepared(name, configuration, revision, cache)):
        return _from_disk(name, found), revision
    reason = why_out_of_reach() if download else "data_download is false"
    if reason is None:
        from datasets import load_dataset_builder

        builder = load_dataset_builder(name, configuration, revision=revision, cache_dir=str(cache))
        return builder, builder.hash
    found = _prepared(name, configuration, revision, cache)
    if not found:
        of = f" of revision {revision}" if revision else ""
        raise UserError(f"dataset: hf/{name}{of} is not in {cache}, and {reason}")
    logger.warning("hf/{} as it was fetched: revision {}, as {}", name, found[-1].name, reason)
    return _from_disk(name, found), found[-1].name


def _prepared(
    name: str, configuration: str | None, revision: str | None, cache: Path
) -> list[Path]:
    """The folders SET/CONFIGURATION/VERSION/REVISION on disk, the newest last."""
    from datasets.naming import camelcase_to_snakecase

    *owner, own = name.split("/")
    folder = cache / "___".join([*owner, camelcase_to_snakecase(own)])
    pattern = f"{configuration or '*'}/*/{revision or '*'}/dataset_info.json"
    return sorted((f.parent for f in folder.glob(pattern)), key=lambda f: f.stat().st_mtime)


def _from_disk(name: str, folders: list[Path]) -> Any:
    """A builder of the last of these folders; UserError where they are of several kinds."""
    from datasets.packaged_modules.cache.cache import Cache

    known = sorted({folder.parts[-3] for folder in folders})
    if len(known) > 1:
        expected = f"one of its configurations: {', '.join(f'hf/{name}:{k}' for k in known)}"
        raise bad_value("dataset", f"hf/{name}", expected)
    *_, configuration, version, revision = folders[-1].parts
    return Cache(
        cache_dir=str(folders[-1].parents[3]),
        dataset_name=name.rpartition("/")[2],
        repo_id=name,
        config_name=configuration,
        version=version,
        hash=revision,
    )
