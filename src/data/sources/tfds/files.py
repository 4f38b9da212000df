"""Where TFDS keeps prepared data sets, data_dir/NAME[/CONFIG]/VERSION, and how one is prepared.

`python -m src.data.sources.tfds.files JSON` prepares one in a process of its own: TensorFlow, which
many of TFDS's generators need, never enters the training run, nor takes its GPU.
"""

import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from loguru import logger

from src.data.sources.fetch import NO_PROGRESS_SECONDS, alone, missing, read_timeout
from src.support import ROOT, UserError, bad_value, one_line, unknown_name

NAME = re.compile(r"(\w+)(?:/([\w.-]+))?(?::(\d+\.\d+\.\d+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
METADATA = ("dataset_info.json", "features.json")  # TFDS writes them when all else is there
RETRIES = 2  # of a download; TFDS has 10, which take minutes to find that there is no network
PACKAGES = {"tensorflow": "tensorflow-cpu", "apache_beam": "apache-beam"}  # module -> package


@dataclass(frozen=True)
class Asked:
    """tfds/NAME[/CONFIG][:VERSION], taken apart."""

    name: str
    config: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        return f"tfds/{self.name}" + (f"/{self.config}" if self.config else "")


def asked_for(name: str, version: str | None) -> Asked:
    """'mnist:3.0.1' -> its parts; version: what data_version says, which may not contradict."""
    match = NAME.fullmatch(name)
    if not match:
        expected = "tfds/NAME, tfds/NAME/CONFIG or tfds/NAME:VERSION, such as tfds/mnist:3.0.1"
        raise bad_value("dataset", f"tfds/{name}", expected)
    asked = Asked(*match.groups())
    if version and asked.version and version != asked.version:
        raise bad_value("data_version", version, f"{asked.version}, as dataset says")
    return replace(asked, version=asked.version or version)


def find(asked: Asked, data_dir: Path) -> tuple[Asked, Path | None]:
    """What is asked for with its configuration, and its folder: of that version, or the newest.

    None where it is not prepared, but TFDS can do it; then with the version that it would have.
    UserError for names, configurations and versions that neither TFDS nor data_dir has, and for
    a folder that is not whole.
    """
    if asked.config is None and not versions_in(data_dir / asked.name):
        asked = replace(asked, config=_default_config(asked.name, data_dir))
    versions = versions_in(_home(asked, data_dir))
    if asked.version is None and versions:
        return asked, list(versions.values())[-1]
    if asked.version in versions:
        return asked, versions[asked.version]
    generator = _class(asked.name)
    if generator is None and not versions:
        raise unknown_name("dataset", str(asked), _alike(asked, data_dir))
    if generator is None:
        raise unknown_name("data_version", str(asked.version), versions)
    _check_config(asked, list(generator.builder_configs))
    builder = generator(data_dir=str(data_dir), config=asked.config)
    known = {str(version) for version in builder.versions}
    if asked.version is not None and asked.version not in known:
        raise unknown_name("data_version", asked.version, known | set(versions))
    asked = replace(asked, version=asked.version or str(builder.version))
    _refuse_half(asked, data_dir)
    return asked, None


def versions_in(folder: Path) -> dict[str, Path]:
    """Version -> folder of those that are prepared to the end, the newest last."""
    found = [
        home
        for home in folder.glob("*.*.*")
        if VERSION.fullmatch(home.name) and all((home / file).is_file() for file in METADATA)
    ]
    found.sort(key=lambda home: [int(number) for number in home.name.split(".")])
    return {home.name: home for home in found}


def import_tfds() -> Any:
    """The library, which imports without TensorFlow in a third of a second."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        needed = "pip install tensorflow-datasets importlib_resources"
        raise UserError(f"dataset: tfds/… needs `{needed}` ({error})") from error
    return tensorflow_datasets


def _home(asked: Asked, data_dir: Path) -> Path:
    """The folder of all its versions."""
    return data_dir / asked.name / (asked.config or "")


def _class(name: str) -> Any:
    """TFDS's generator of a data set; None where it has none."""
    tfds = import_tfds()
    known = tfds.list_builders(with_community_datasets=False)
    return tfds.builder_cls(name) if name in known else None


def _default_config(name: str, data_dir: Path) -> str | None:
    """The configuration that is meant where none is given; as TFDS noted when it prepared one."""
    try:
        note = json.loads((data_dir / name / ".config" / "metadata.json").read_text())
        return note["default_config_name"]
    except (OSError, ValueError, KeyError):
        default = getattr(_class(name), "default_builder_config", None)
        return default and default.name


def _check_config(asked: Asked, configs: list[str]) -> None:
    if asked.config is not None and asked.config not in configs:
        known = [str(Asked(asked.name, config)) for config in configs]
        raise unknown_name("dataset", str(asked), known or [str(Asked(asked.name))])


def _refuse_half(asked: Asked, data_dir: Path) -> None:
    """UserError for such a folder, which TFDS itself would take as it is."""
    folder = _home(asked, data_dir) / str(asked.version)
    if folder.exists():
        lacking = " and ".join(file for file in METADATA if not (folder / file).is_file())
        raise UserError(
            f"dataset: {asked} in {folder} is not whole, as there is no {lacking}: copy it anew,"
            " or delete the folder to have it prepared"
        )


def _alike(asked: Asked, data_dir: Path) -> list[str]:
    """Of the hundreds of names those that begin as this one, or are like it; else all."""
    patterns = (f"*/*/{METADATA[0]}", f"*/*/*/{METADATA[0]}")
    files = [file for pattern in patterns for file in data_dir.glob(pattern)]
    known = {f"tfds/{file.parents[1].relative_to(data_dir)}" for file in files}
    known |= {f"tfds/{n}" for n in import_tfds().list_builders(with_community_datasets=False)}
    begin_so = [name for name in known if name.startswith(f"tfds/{asked.name}")]
    return begin_so or get_close_matches(str(asked), known, n=8, cutoff=0.75) or list(known)


# ---- Preparing ---------------------------------------------------------------------------


def prepare(asked: Asked, data_dir: Path) -> Path:
    """The folder of what `find` did not find: one process prepares it, others wait. UserError."""
    with alone(data_dir / f".tfds_{asked.name}.lock", f"fetches or prepares {asked}"):
        _, folder = find(asked, data_dir)  # another process may have prepared it
        if folder is None:
            logger.info("{} is not in {}: fetching and preparing it", asked, data_dir)
            _run(asked, data_dir)
            _, folder = find(asked, data_dir)
    if folder is None:
        raise not_there(asked, data_dir, "could not be prepared")
    return folder


def not_there(asked: Asked, data_dir: Path, reason: str) -> UserError:
    folder = _home(asked, data_dir) / (asked.version or "VERSION")
    return missing(str(asked), reason, folder, "the files that TFDS writes")


def _run(asked: Asked, data_dir: Path) -> None:
    """Generate it in a process of its own; UserError where that fails."""
    request = {"data_dir": str(data_dir.absolute()), "config": asked.config}
    request |= {"name": asked.name, "version": asked.version}
    is_watched = sys.stderr.isatty()
    done = subprocess.run(
        [sys.executable, "-m", "src.data.sources.tfds.files", json.dumps(request)],
        cwd=ROOT,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if is_watched else subprocess.PIPE,  # its progress bars
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return
    answer = done.stdout.strip() or (done.stderr or "").strip()
    fault = answer.splitlines()[-1] if answer else f"ended by {done.returncode}"
    raise not_there(asked, data_dir, f"could not be prepared ({fault})")


def _generate(name: str, *, data_dir: str, config: str | None, version: str | None) -> None:
    """Have TFDS fetch and prepare a data set as array_record, aside and renamed at the end."""
    tfds = import_tfds()
    from tensorflow_datasets.core.download import downloader

    fetch = partial(downloader._open_with_requests, timeout=NO_PROGRESS_SECONDS)
    vars(downloader).update(MAX_RETRIES=RETRIES, _open_with_requests=fetch)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    options = {"data_dir": data_dir, "config": config, "version": version}
    builder = tfds.builder_cls(name)(file_format="array_record", **options)
    with read_timeout():
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


def _needed(error: Exception) -> str:
    """What to install for a generator that lacks a package, or what went wrong."""
    if isinstance(error, ImportError) and error.name:
        module = error.name.partition(".")[0]
        package = PACKAGES.get(module, module)
        return f"to be prepared, not to be read, it needs `pip install {package}`"
    return one_line(error)


if __name__ == "__main__":
    try:
        with redirect_stdout(sys.stderr):
            _generate(**json.loads(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # the process that asked shows it
        print(_needed(error))
        sys.exit(1)
