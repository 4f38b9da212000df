"""An earlier run as an object: for notebooks, as a teacher, as the start of another model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from loguru import logger
from torch import nn

from src.config import Config
from src.logging import Stats
from src.models import build_model, without_weights
from src.runtime.checkpoints import CheckpointFiles, epoch_files
from src.support import UserError, bad_value, one_line, pick

MAX_REASON = 200  # characters of an error of torch


@dataclass(frozen=True)
class EarlierRun:
    """What load_run has found in a folder."""

    config: Config  # as it was resolved
    model: nn.Module  # in eval mode, its parameters without gradients
    stats: pd.DataFrame  # a row an epoch
    path: Path  # the file that the weights are from
    epoch: int  # the last one evaluated before that was written; 0: none


def load_run(
    folder: str | Path,
    model: str = "last",
    *,
    checkpoint: str | None = None,
    device: str | torch.device = "cpu",
) -> EarlierRun:
    """The run in a folder: its configuration, its model with the weights, its stats.

    model: last, or one of its averages: av, av2, …. checkpoint: best or epoch_0004, files of
    checkpoints/, or state, the newest of state/. None: best where the run has kept it
    (save_best_checkpoint), else its end, which is that state, else the newest of the epochs.
    All are whole models, also of a run in several processes or with fsdp.

    Nothing is written, the data are not needed, and the global random generators stay as they are,
    so that a run which loads a teacher starts and draws as it would without one. For training
    further: run.model.train().requires_grad_(True). Raises UserError.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        expected = "the folder of a run that has started, which holds config.yaml"
        raise bad_value("load_run", str(folder), expected)
    config = Config.read(folder / "config.yaml")
    if config.model_input_shape is None:
        raise UserError(f"{folder / 'config.yaml'}: model_input_shape is null: fill in the run's")
    path, epoch, models = _read_weights(folder, checkpoint)
    weights = pick(models, model, "model")
    network = build_model(
        without_weights(config),
        tuple(config.model_input_shape),
        config.data_n_classes,
        device=torch.device(device),
    )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = one_line(error, MAX_REASON)
        raise UserError(f"{path}: does not fit {config.model!r} of this code ({reason})") from None
    # not before the end of the first epoch
    stats = Stats.read(folder) if (folder / "stats.csv").exists() else pd.DataFrame()
    return EarlierRun(config, network.eval().requires_grad_(False), stats, path, epoch)


def _read_weights(folder: Path, checkpoint: str | None) -> tuple[Path, int, dict[str, Any]]:
    """(The file, its epoch, name of the model -> its state dict), read without pickle."""
    states = CheckpointFiles(folder / "state")
    files = [folder / "checkpoints" / "best.pt", *epoch_files(folder / "checkpoints")]
    paths = {path.stem: path for path in files if path.is_file()}
    if states.paths():
        paths["state"] = folder / "state"
    if not paths:
        keys = "save_best_checkpoint, save_freq, keep_state"
        raise UserError(f"{folder}: holds no weights in checkpoints/ or state/ (keys {keys})")
    preferred = next(name for name in ("best", "state", *paths) if name in paths)
    path = pick(paths, checkpoint or preferred, "checkpoint")

    if path == paths.get("state"):
        content, corrupt = states.read_newest()
        problems = "; ".join(f"{file.name} {why}" for file, why in corrupt.items())
        if content is None:
            raise UserError(f"{path}: none of the saved states can be read ({problems})")
        if problems:
            logger.warning("{}: {}; the state before is used", path, problems)
        path, parts = path / f"{content['step']:09d}.state", content["parts"]
        models = {"last": parts["model"]} if "model" in parts else {}
        # an AveragedModel (src/optim/averaging.py) saves these two
        models |= {name: p["model"] for name, p in parts.items() if p.keys() == {"t", "model"}}
        return path, content["epoch"], models
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        models = {name: part for name, part in content.items() if isinstance(part, Mapping)}
        return path, content["epoch"], models
    except Exception as error:  # a broken file raises whatever its bytes lead to
        raise UserError(f"{path}: cannot be read ({one_line(error, MAX_REASON)})") from None
