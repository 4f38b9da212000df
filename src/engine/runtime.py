"""What a run computes on."""

import torch

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
