"""Files of weights in the run folder: torch.save of tensors and numbers, read without pickle."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.files import write_atomically
from src.optim.averaging import Average


def save_weights(
    path: Path | None, epoch: int, model: nn.Module, averages: dict[str, Average]
) -> None:
    """Write {'epoch', 'last': state dict, 'av': state dict, …} whole or not at all.

    path=None, a run without a folder, writes nothing.
    """
    if path is None:
        return
    path.parent.mkdir(exist_ok=True)
    content: dict[str, Any] = {"epoch": epoch, "last": model.state_dict()}
    content |= {name: average.model.state_dict() for name, average in averages.items()}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())
