"""The services that a run can be logged to, a class each, and what they show of a run.

SERVICES lists them. To add one: a class here, its line in SERVICES, its name in src/keys.py. Each
library is imported when its service is built: nobody needs more than he uses. Online, the run is
resumed where the service has it already. Offline, all rows are logged into a folder that the
service's own command reads as well (`wandb sync`, `comet upload`).
"""

import csv
import json
import netrc
import os
import secrets
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from time import time
from typing import Any, ClassVar
from urllib.parse import urlparse

from src.config import read_yaml_file
from src.logging.same_run import read_json
from src.support import pick, write_atomically

SECONDS_TO_START = 60.0  # of wandb
SECONDS_TO_FLUSH = 60  # of Comet
PROJECT = "experiments"  # where wandb_project_name is null


class TrackedRun:
    """A run as trackers see it, read from its folder, which has a config.yaml and trackers/."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder = folder.resolve()
        self.config = config = read_yaml_file(folder / "config.yaml")  # all keys, resolved
        self.commit = read_json(folder / "provenance.json").get("commit")
        identity = folder / "trackers" / "id"
        if not identity.exists():
            write_atomically(identity, secrets.token_hex(16) + "\n")
        self.id = identity.read_text().strip()  # 32 hexadecimal digits
        self.name = config.get("wandb_run_name") or folder.name
        is_of_batch = any((folder.parent / name).exists() for name in ("rows.jsonl", "job.yaml"))
        self.group = folder.parent.name if is_of_batch else None  # its batch
        self.project = config.get("wandb_project_name") or PROJECT
        self.tags = list(config.get("wandb_tags") or ())

    def rows(self) -> Iterator[tuple[int, dict[str, float]]]:
        """(step, values) of each epoch in stats.csv, without its time of day and empty cells."""
        with suppress(FileNotFoundError), open(self.folder / "stats.csv", newline="") as file:
            for cells in list(csv.DictReader(file)):
                known = {name: text for name, text in cells.items() if name and text}
                known.pop("timestamp", None)
                values = {name: float(text) for name, text in known.items()}
                yield int(values.pop("step")), values


class Service:
    """One run at one tracker. An error that it raises ends the logging, never the run."""

    package: ClassVar[str]  # to install

    def __init__(self, run: TrackedRun, archive: Path, *, is_online: bool) -> None:
        """archive: the folder for what is kept offline, empty."""

    @staticmethod
    def has_credentials() -> bool:
        """Whether it can be online."""
        return False

    def last_step(self, confirmed: int) -> int:
        """Online: the last step of which the service has the values already; -1: none.

        confirmed: the last one that flush() has returned for, in this attempt or an earlier one.
        """
        return confirmed

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values after so many optimizer steps; steps rise from call to call."""
        raise NotImplementedError

    def flush(self) -> None:
        """Returns when what was logged is written or sent; here, it happens by itself."""

    def end(self, outcome: str, reason: str, pictures: Mapping[str, Path]) -> None:
        """The run, or this attempt at it, has ended. Returns when all has been written or sent."""
        raise NotImplementedError


class Wandb(Service):
    """Weights & Biases. Its own process sends, and the server knows how far that came."""

    package = "wandb"

    def __init__(self, run: TrackedRun, archive: Path, *, is_online: bool) -> None:
        import wandb

        # What it would find out by itself is about our process, which computes nothing; of the run
        # there are columns system/….
        quiet: Any = {"x_disable_stats": True, "disable_git": True, "save_code": False}
        quiet |= {"console": "off", "silent": True}
        self.run = wandb.init(
            mode="online" if is_online else "offline",
            id=run.id,
            resume="allow",
            project=run.project,
            name=run.name,
            group=run.group,
            tags=run.tags,
            config=run.config | {"commit": run.commit},
            dir=archive,
            settings=wandb.Settings(init_timeout=SECONDS_TO_START, **quiet),
        )

    @staticmethod
    def has_credentials() -> bool:
        """A key in the environment, or where `wandb login` leaves it."""
        if os.environ.get("WANDB_MODE", "online") != "online":
            return False
        if os.environ.get("WANDB_API_KEY"):
            return True
        host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        with suppress(OSError, netrc.NetrcParseError):
            return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
        return False

    def last_step(self, confirmed: int) -> int:
        return self.run.starting_step - 1  # the server says from where it resumes

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step, commit=True)

    def end(self, outcome: str, reason: str, pictures: Mapping[str, Path]) -> None:
        import wandb

        self.run.summary.update({"outcome": outcome, "reason": reason})
        # Pictures stand beside the last row: another step would be another row.
        self.run.summary.update({name: wandb.Image(str(path)) for name, path in pictures.items()})
        self.run.finish(exit_code=1 if outcome in ("failed", "running") else 0)


class Comet(Service):
    package = "comet_ml"
    # What it would find out by itself is about our process, which computes nothing
    QUIET = (
        *("log_code", "log_graph", "parse_args", "auto_output_logging", "auto_param_logging"),
        *("auto_metric_logging", "log_env_details", "log_git_metadata", "log_git_patch"),
        "auto_log_co2",
    )

    def __init__(self, run: TrackedRun, archive: Path, *, is_online: bool) -> None:
        import comet_ml

        self.is_online = is_online
        kind: Any = comet_ml.Experiment
        options: dict[str, Any] = {"project_name": run.project}
        if not is_online:
            kind = comet_ml.OfflineExperiment
            options["offline_directory"] = str(archive)
        elif comet_ml.API().get_experiment_by_key(run.id) is not None:
            kind, options = comet_ml.ExistingExperiment, {}
        options |= dict.fromkeys(self.QUIET, False) | {"display_summary_level": 0}
        self.experiment = kind(experiment_key=run.id, **options)
        if is_online and not self.experiment.alive:
            raise ConnectionError("Comet does not answer, or refuses the key")
        self.experiment.set_name(run.name)
        if run.tags:
            self.experiment.add_tags(run.tags)
        self.experiment.log_parameters(run.config)
        self.experiment.log_others({"group": run.group, "commit": run.commit})

    @staticmethod
    def has_credentials() -> bool:
        """A key in the environment, or in Comet's own file."""
        import comet_ml

        return bool(comet_ml.config.get_config("comet.api_key"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        epoch = int(values["epoch"]) if "epoch" in values else None
        self.experiment.log_metrics(dict(values), step=step, epoch=epoch)

    def flush(self) -> None:
        is_sent = self.experiment.flush(timeout=SECONDS_TO_FLUSH)
        if self.is_online and not is_sent:
            raise ConnectionError(f"Comet did not take all within {SECONDS_TO_FLUSH} s")

    def end(self, outcome: str, reason: str, pictures: Mapping[str, Path]) -> None:
        self.experiment.log_others({"outcome": outcome, "reason": reason})
        for name, path in pictures.items():
            self.experiment.log_image(str(path), name=name)
        self.flush()
        self.experiment.end()


class TensorBoard(Service):
    """Event files: `tensorboard --logdir results` shows those of all runs. Never online.

    Not torch.utils.tensorboard.SummaryWriter, which does the same but imports torch: seconds and
    hundreds of MB beside each run.
    """

    package = "tensorboard"

    def __init__(self, run: TrackedRun, archive: Path, *, is_online: bool) -> None:
        # Without it, TensorBoard would import TensorFlow where that is installed: seconds.
        sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.Event, self.Summary, self.text_pb = Event, Summary, text_pb
        self.step, self.writer = 0, EventFileWriter(str(archive))
        plain = bool | int | float | str
        hparams = {k: v if isinstance(v, plain) else json.dumps(v) for k, v in run.config.items()}
        self._add(hparams_pb(hparams, trial_id=run.id))
        facts = {"commit": run.commit, "name": run.name, "tags": run.tags, "id": run.id}
        text = json.dumps(run.config | facts, indent=1, default=str)
        self._add(text_pb("config", f"```\n{text}\n```"))

    def _add(self, summary: Any = None, **value: Any) -> None:
        """An event, at the step of the last row: a summary, or one of this value."""
        summary = summary or self.Summary(value=[self.Summary.Value(**value)])
        self.writer.add_event(self.Event(wall_time=time(), step=self.step, summary=summary))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.step = step
        numbers = [self.Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self._add(self.Summary(value=numbers))

    def flush(self) -> None:
        self.writer.flush()

    def end(self, outcome: str, reason: str, pictures: Mapping[str, Path]) -> None:
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        self._add(self.text_pb("outcome", f"```\n{outcome}: {reason}\n```"))
        for name, path in pictures.items():
            self._add(tag=name, image={"encoded_image_string": path.read_bytes()})
        is_well = outcome in ("finished", "early_stopped")
        status = api_pb2.STATUS_SUCCESS if is_well else api_pb2.STATUS_FAILURE
        end = {"status": status, "end_time_secs": time()}
        about = plugin_data_pb2.HParamsPluginData(session_end_info=end)
        self._add(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(about),
            tensor=metadata.NULL_TENSOR,
        )
        self.writer.close()


class Trackio(Service):
    """On this machine: `trackio show` draws what all runs have logged to its database, which lies
    in TRACKIO_DIR, else in the cache of Hugging Face. It writes several times a second."""

    package = "trackio"

    def __init__(self, run: TrackedRun, archive: Path, *, is_online: bool) -> None:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        name = f"{run.name}-{run.id[:6]}"  # a folder of the same name may come again
        self.run = trackio.init(
            project=run.project,
            name=name,
            group=run.group,
            config=run.config | {"commit": run.commit, "tags": run.tags},
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        last = SQLiteStorage.get_last_step(run.project, name)
        self.step = -1 if last is None else last

    @staticmethod
    def has_credentials() -> bool:
        return True

    def last_step(self, confirmed: int) -> int:
        return self.step

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)
        self.step = step

    def end(self, outcome: str, reason: str, pictures: Mapping[str, Path]) -> None:
        import trackio

        images = {name: trackio.Image(str(path)) for name, path in pictures.items()}
        self.run.log({"outcome": outcome, "reason": reason, **images}, step=self.step)
        self.run.finish()


SERVICES: dict[str, type[Service]]
SERVICES = {"comet": Comet, "tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}


def load_service(name: str) -> type[Service]:
    """Imports its library. Raises ImportError with what to install."""
    service = pick(SERVICES, name, "trackers")
    try:
        import_module(service.package)
    except ImportError as error:
        raise ImportError(f"{error}; install it by: pip install {service.package}") from None
    return service
