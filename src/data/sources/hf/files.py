"""Files, folders and sets of the hub, opened by Hugging Face's `datasets`: see hf.py for names."""

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from loguru import logger

from src.data.slices import bases_used, check_bases, parse
from src.data.sources.fetch import missing
from src.data.sources.hf.hub import open_hub_set, silence
from src.support import UserError, bad_value, one_line

# loader -> the endings of its files in a folder
LOADERS: dict[str, list[str]] = {
    "csv": [".csv"],
    "json": [".json", ".jsonl", ".ndjson"],
    "parquet": [".parquet"],
    "text": [".txt"],
    "imagefolder": [],
}
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk writes


@dataclass(frozen=True)
class Place:
    """Where data are, and whether what is missing may be fetched, of which revision."""

    data_dir: Path
    download: bool = True
    revision: str | None = None

    @property
    def cache(self) -> Path:
        return self.data_dir / "hf"


def check_name(name: str, splits_map: Mapping[str, str], *, revision: str | None = None) -> None:
    """UserError for what shows without looking at files or asking the hub."""
    loader, path = spelled(name)
    if loader in LOADERS and not path:
        raise bad_value("dataset", f"hf/{name}", f"hf/{loader}:PATH")
    if loader in LOADERS and revision is not None:
        raise bad_value("data_version", revision, "null, as files have no versions")
    if not loader.strip("/"):
        raise bad_value("dataset", f"hf/{name}", f"hf/NAME, hf/PATH, hf/{'|'.join(LOADERS)}:PATH")
    for spelling in splits_map.values():
        parse(spelling)
    if find_spec("datasets") is None:
        needed = f"dataset: hf/{name} needs `pip install datasets`"
        raise UserError(needed) from ImportError("datasets")


def spelled(name: str) -> tuple[str, str]:
    """What stands before the colon, and what after it.

    >>> spelled("csv:a/b.csv"), spelled("nyu-mll/glue:mrpc"), spelled("imdb")
    (('csv', 'a/b.csv'), ('nyu-mll/glue', 'mrpc'), ('imdb', ''))
    """
    first, _, second = name.partition(":")
    return first, second


def open_parts(
    name: str, splits_map: Mapping[str, str], place: Place
) -> tuple[dict[str, Any], str | None]:
    """part -> datasets.Dataset for the parts that are used, and the revision of a set of the hub.

    UserError for what is not there, cannot be read or lacks a part.
    """
    check_name(name, splits_map, revision=place.revision)
    try:
        silence()
        found, revision = _open(name, splits_map, place)
    except UserError:
        raise
    except Exception as error:  # whatever the files, the library and those below it raise
        is_wrapped = type(error).__name__ == "DatasetGenerationError"
        cause = (error.__cause__ or error) if is_wrapped else error
        raise UserError(f"dataset: hf/{name} cannot be read ({one_line(cause)})") from error
    return {base: found[base].with_format(None) for base in bases_used(splits_map)}, revision


def _open(
    name: str, splits_map: Mapping[str, str], place: Place
) -> tuple[Mapping[str, Any], str | None]:
    loader, path = spelled(name)
    if loader in LOADERS:
        return _prepared(_reader(name, place), splits_map, name), None
    if (folder := place.data_dir / name).is_dir():
        logger.info("hf/{} is the folder {}", name, folder)
        return _open_folder(folder, splits_map, name, place), None
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", loader):
        expected = f"a name of the hub, hf/OWNER/NAME, or a folder; there is no {folder}"
        raise bad_value("dataset", f"hf/{name}", expected)
    builder, revision = open_hub_set(
        loader,
        configuration=path or None,
        revision=place.revision,
        cache=place.cache / "hub",
        download=place.download,
    )
    return _prepared(builder, splits_map, name), revision


def _prepared(builder: Any, splits_map: Mapping[str, str], name: str) -> Mapping[str, Any]:
    """All parts, read once by one process and kept as Arrow files, while others wait."""
    if builder.info.splits:  # a wrong part is told before gigabytes are fetched
        check_bases(splits_map, list(builder.info.splits), f"hf/{name}")
    builder.download_and_prepare()
    found = builder.as_dataset()
    check_bases(splits_map, list(found), f"hf/{name}")
    return found


def _reader(name: str, place: Place) -> Any:
    """A builder of files: one, those of a folder, or those that a pattern fits."""
    from datasets import load_dataset_builder

    loader, given = spelled(name)
    path = place.data_dir / given
    options: dict[str, Any] = {"sep": "\t"} if path.suffix == ".tsv" else {}
    if not path.is_dir():
        if loader == "imagefolder" or not glob.glob(str(path), recursive=True):
            raise missing(f"hf/{name}", "is not there", path.parent, path.name)
        options["data_files"] = str(path)
    elif loader == "imagefolder":
        options["data_dir"] = str(path)
    else:
        options["data_files"] = _files_of(path, name)
    return load_dataset_builder(loader, cache_dir=str(place.cache / "files"), **options)


def _files_of(folder: Path, name: str) -> dict[str, list[str]]:
    """part -> its files, as the library tells parts by names of files and folders."""
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    endings = LOADERS[spelled(name)[0]]
    try:
        patterns = get_data_patterns(str(folder))
    except EmptyDatasetError:
        patterns = {}
    found = DataFilesDict.from_patterns(patterns, base_path=str(folder), allowed_extensions=endings)
    if not any(found.values()):
        raise missing(f"hf/{name}", "has no files", folder, " or ".join(f"*{e}" for e in endings))
    return {str(part): list(files) for part, files in found.items() if files}


def _open_folder(
    folder: Path, splits_map: Mapping[str, str], name: str, place: Place
) -> Mapping[str, Any]:
    """Files of a folder, or what save_to_disk wrote there."""
    from datasets import load_dataset_builder, load_from_disk

    if place.revision is not None:
        raise bad_value("data_version", place.revision, "null, as a folder has no versions")
    if not any((folder / file).exists() for file in SAVED):
        builder = load_dataset_builder(str(folder), cache_dir=str(place.cache / "files"))
        return _prepared(builder, splits_map, name)
    found = load_from_disk(str(folder))
    parts = found if isinstance(found, Mapping) else {"train": found}
    check_bases(splits_map, list(parts), f"hf/{name}")
    return parts
