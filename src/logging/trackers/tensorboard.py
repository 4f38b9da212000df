"""TensorBoard's event files: tensorboard --logdir results shows those of all runs."""

import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from time import time
from typing import Any

from src.logging.trackers.tracked import Tracked


def has_credentials() -> bool:
    """It is never online: its files are all there is."""
    return False


class TensorBoard:
    def __init__(self, run: Tracked, archive: Path, *, is_online: bool) -> None:
        # Without it, TensorBoard would import TensorFlow where that is installed: seconds.
        sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("notf"))
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.summary, self.step = Summary, 0
        self.writer = EventFileWriter(str(archive))
        started = plugin_data_pb2.SessionStartInfo(group_name=run.id, start_time_secs=time())
        for key, value in run.config.items():
            _write_setting(started.hparams[key], value)
        told = plugin_data_pb2.HParamsPluginData(session_start_info=started)
        self._settings(metadata.SESSION_START_INFO_TAG, told)
        facts = {"commit": run.commit, "name": run.name, "tags": list(run.tags), "id": run.id}
        self._text("config", json.dumps(run.config | facts, indent=1, default=str))

    def last_step(self, confirmed: int) -> int:
        return -1

    def log(self, step: int, values: Mapping[str, float]) -> None:
        cells = [self.summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self._add(self.summary(value=cells), step)
        self.step = step

    def flush(self) -> None:
        self.writer.flush()

    def end(self, outcome: str, reason: str, pictures: Mapping[str, Path]) -> None:
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        self._text("outcome", f"{outcome}: {reason}")
        for name, path in pictures.items():
            image = self.summary.Image(encoded_image_string=path.read_bytes())
            value = self.summary.Value(tag=name, image=image)
            self._add(self.summary(value=[value]), self.step)
        is_well = outcome in ("finished", "early_stopped")
        status = api_pb2.STATUS_SUCCESS if is_well else api_pb2.STATUS_FAILURE
        ended = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time())
        told = plugin_data_pb2.HParamsPluginData(session_end_info=ended)
        self._settings(metadata.SESSION_END_INFO_TAG, told)
        self.writer.close()

    def _settings(self, tag: str, told: Any) -> None:
        from tensorboard.plugins.hparams import metadata

        about = metadata.create_summary_metadata(told)
        value = self.summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)
        self._add(self.summary(value=[value]), self.step)

    def _text(self, name: str, text: str) -> None:
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.plugins.text import metadata

        tensor = TensorProto(dtype="DT_STRING", string_val=[f"```\n{text}\n```".encode()])
        about = metadata.create_summary_metadata(display_name=name, description="")
        value = self.summary.Value(tag=name, tensor=tensor, metadata=about)
        self._add(self.summary(value=[value]), self.step)

    def _add(self, summary: object, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self.writer.add_event(Event(wall_time=time(), step=step, summary=summary))


def _write_setting(setting: Any, value: object) -> None:
    """Into a protobuf value, which takes numbers, texts, true and false."""
    if isinstance(value, bool):
        setting.bool_value = value
    elif isinstance(value, int | float):
        setting.number_value = value
    else:
        setting.string_value = value if isinstance(value, str) else json.dumps(value)
