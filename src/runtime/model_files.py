"""Files of weights for people: torch.save of tensors and numbers, read without pickle.

What a run goes on from is another matter: src/runtime/train_state.py.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.runtime.train_state import snapshot
from src.support import UserError, write_atomically


def save_weights(path: Path | None, epoch: int, models: Mapping[str, nn.Module]) -> None:
    """Write {'epoch', 'last': state dict, 'av': state dict, …} whole or not at all.

    path=None, a run without a folder or another process than the main one, writes nothing.
    Raises UserError where the disk refuses.
    """
    content: dict[str, Any] = {"epoch": epoch}
    content |= {name: model.state_dict() for name, model in models.items()}
    content = snapshot(content, is_kept=path is not None)
    if path is None:
        return
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, buffer.getvalue())
    except OSError as error:  # going on would lose what was asked for
        raise UserError(
            f"cannot write {path}: {error.strerror}; start it again to resume"
        ) from None


def prune(path: Path | None, *, keep: int | None) -> None:
    """Of the epoch_NNNN.pt beside path, only the newest `keep` stay; None: all."""
    if path is None or keep is None:
        return
    files = [file for file in path.parent.iterdir() if re.fullmatch(r"epoch_\d{4,}\.pt", file.name)]
    files.sort(key=lambda file: int(file.stem.split("_")[1]))
    for old in files[:-keep]:
        old.unlink(missing_ok=True)
