"""What a run computes on."""

import torch
from loguru import logger
from torch import nn

from src.names import bad_value


def pick_device(name: str | None) -> torch.device:
    """The device asked for, or cuda where there is one, else cpu. Raises UserError."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there_are = f"null or cpu, as {torch.cuda.device_count()} CUDA devices are visible"
        raise bad_value("device", name, there_are)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise bad_value("device", name, "null or cpu, as this machine has no MPS device")
    return device


def spread_over_gpus(model: nn.Module, device: torch.device) -> nn.Module:
    """The model as it is called: on all visible GPUs, where there are several to choose from."""
    if device.type != "cuda" or device.index is not None or torch.cuda.device_count() == 1:
        return model
    logger.info("each batch is spread over {} GPUs", torch.cuda.device_count())
    return nn.DataParallel(model)
