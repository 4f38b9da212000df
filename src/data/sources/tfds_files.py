"""Where TFDS keeps prepared data sets, data_dir/NAME[/CONFIG]/VERSION, and how one is prepared.

`python -m src.data.sources.tfds_files JSON` prepares one in a process of its own: TensorFlow, which
many of TFDS's generators need, never enters the training run, nor takes its GPU. (TFDS's own
command line, `tfds build`, has no option to give up on a dead network before 204 s.)
"""

import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
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
class TFDSName:
    """tfds/NAME[/CONFIG][:VERSION], taken apart."""

    name: str
    config: str | None = None
    version: str | None = None

    def __str__(self) -> str:
        return f"tfds/{self.name}" + (f"/{self.config}" if self.config else "")

    def home(self, data_dir: Path) -> Path:
        """The folder of all its versions."""
        return data_dir / self.name / (self.config or "")


def parse_name(name: str, version: str | None) -> TFDSName:
    """'mnist:3.0.1' -> its parts; version: data_version, which may not contradict."""
    match = NAME.fullmatch(name)
    if not match:
        expected = "tfds/NAME, tfds/NAME/CONFIG or tfds/NAME:VERSION, such as tfds/mnist:3.0.1"
        raise bad_value("dataset", f"tfds/{name}", expected)
    parsed = TFDSName(*match.groups())
    if version and parsed.version and version != parsed.version:
        raise bad_value("data_version", version, f"{parsed.version}, as dataset says")
    return replace(parsed, version=parsed.version or version)


def find(wanted: TFDSName, data_dir: Path) -> tuple[TFDSName, Path | None]:
    """What is wanted with its configuration, and its folder: of that version, or the newest.

    None where it is not prepared, but TFDS can do it; then with the version that it would have.
    UserError for names, configurations and versions that neither TFDS nor data_dir has, and for
    a folder that is not whole.
    """
    if wanted.config is None and not versions_in(data_dir / wanted.name):
        try:  # the configuration that is meant, as TFDS noted when it prepared one
            note = json.loads((data_dir / wanted.name / ".config" / "metadata.json").read_text())
            config = note["default_config_name"]
        except (OSError, ValueError, KeyError):
            default = getattr(_generator(wanted.name), "default_builder_config", None)
            config = default and default.name
        wanted = replace(wanted, config=config)
    versions = versions_in(wanted.home(data_dir))
    if versions and wanted.version in (None, *versions):
        return wanted, versions[wanted.version or list(versions)[-1]]
    generator = _generator(wanted.name)
    if generator is None and versions:
        raise unknown_name("data_version", str(wanted.version), versions)
    if generator is None:
        files = [f for stars in ("*/*", "*/*/*") for f in data_dir.glob(f"{stars}/{METADATA[0]}")]
        names = {str(file.parents[1].relative_to(data_dir)) for file in files}
        names |= set(import_tfds().list_builders(with_community_datasets=False))
        begin_so = [name for name in names if name.startswith(wanted.name)]
        raise unknown_name("dataset", str(wanted), [f"tfds/{n}" for n in begin_so or names])
    if wanted.config not in (None, *generator.builder_configs):
        configs = list(generator.builder_configs) or [None]
        known = [str(TFDSName(wanted.name, config)) for config in configs]
        raise unknown_name("dataset", str(wanted), known)
    builder = generator(data_dir=str(data_dir), config=wanted.config)
    supported = {str(version) for version in builder.versions}
    if wanted.version not in (None, *supported):
        raise unknown_name("data_version", str(wanted.version), supported | set(versions))
    wanted = replace(wanted, version=wanted.version or str(builder.version))
    folder = wanted.home(data_dir) / str(wanted.version)
    if folder.exists():  # TFDS itself would take it as it is
        lacking = " and ".join(file for file in METADATA if not (folder / file).is_file())
        raise UserError(
            f"dataset: {wanted} in {folder} is not whole, as there is no {lacking}: copy it again,"
            " or delete the folder to have it prepared"
        )
    return wanted, None


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


def _generator(name: str) -> Any:
    """TFDS's generator of a data set; None where it has none."""
    tfds = import_tfds()
    known = tfds.list_builders(with_community_datasets=False)
    return tfds.builder_cls(name) if name in known else None


# ---- Preparing ---------------------------------------------------------------------------


def prepare(wanted: TFDSName, data_dir: Path) -> Path:
    """The folder of what `find` did not find: one process prepares it, others wait. UserError."""
    request = {"data_dir": str(data_dir.absolute()), "config": wanted.config}
    request |= {"name": wanted.name, "version": wanted.version}
    with alone(data_dir / f".tfds_{wanted.name}.lock", f"fetches or prepares {wanted}"):
        if folder := find(wanted, data_dir)[1]:  # another process has prepared it
            return folder
        logger.info("{} is not in {}: fetching and preparing it", wanted, data_dir)
        done = subprocess.run(
            [sys.executable, "-m", "src.data.sources.tfds_files", json.dumps(request)],
            cwd=ROOT,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if sys.stderr.isatty() else subprocess.PIPE,  # its progress bars
            text=True,
            check=False,
        )
        answer = (done.stdout.strip() or (done.stderr or "").strip()).splitlines()
        if not done.returncode and (folder := find(wanted, data_dir)[1]):
            return folder
    fault = answer[-1] if answer else f"ended by {done.returncode}"
    raise not_prepared(wanted, data_dir, f"could not be prepared ({fault})")


def not_prepared(wanted: TFDSName, data_dir: Path, reason: str) -> UserError:
    folder = wanted.home(data_dir) / (wanted.version or "VERSION")
    return missing(str(wanted), reason, folder, "the files that TFDS writes")


def main() -> int:
    """What the process does: TFDS fetches and prepares a data set as array_record, aside and
    renamed at the end. The last line says what went wrong, or what to install."""
    request = json.loads(sys.argv[1])
    name = request.pop("name")
    try:
        with redirect_stdout(sys.stderr), read_timeout():
            tfds = import_tfds()
            from tensorflow_datasets.core.download import downloader

            fetch = partial(downloader._open_with_requests, timeout=NO_PROGRESS_SECONDS)
            vars(downloader).update(MAX_RETRIES=RETRIES, _open_with_requests=fetch)
            if not sys.stderr.isatty():
                tfds.disable_progress_bar()
            builder = tfds.builder_cls(name)(file_format="array_record", **request)
            download = tfds.download.DownloadConfig(try_download_gcs=False)
            builder.download_and_prepare(download_config=download)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        reason = one_line(error)
        if isinstance(error, ImportError) and error.name:
            module = error.name.partition(".")[0]
            package = PACKAGES.get(module, module)
            reason = f"to be prepared, not to be read, it needs `pip install {package}`"
        print(reason)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
