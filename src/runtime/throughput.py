"""The pace of training: examples a second, and the fraction of the peak FLOP/s (mfu).

The work is that of the model, forward and backward, as torch's counter finds it in its matrix
products, convolutions and attention; a multiply-add counts 2. Loss and optimizer count nothing.
"""

import copy
import re

import torch
from loguru import logger
from torch import Tensor, nn

from src.data import Split
from src.runtime.step_schedule import StepSchedule
from src.runtime.train_state import TrainState
from src.support import random_state


class Throughput:
    """The pace of training. seconds_at_peak: of an example at peak FLOP/s; None: not known."""

    def __init__(self, seconds_at_peak: float | None = None) -> None:
        self.seconds_at_peak = seconds_at_peak

    def metrics(
        self, state: TrainState, step_schedule: StepSchedule, steps: range
    ) -> dict[str, float]:
        """The columns of an epoch's training, interrupted or not; steps: those of the epoch."""
        seconds, seen = state.training.seconds, step_schedule.samples_after(state.step)
        per_second = (seen - step_schedule.samples_after(steps.start)) / max(seconds, 1e-9)
        found = {
            "time": seconds,
            "data_time": state.data_time,
            "seen_examples": seen,
            "examples_per_second": per_second,
        }
        if self.seconds_at_peak is not None:
            found["peak_share"] = per_second * self.seconds_at_peak
        return found


def build_throughput(
    model: nn.Module,
    split: Split,
    input_shape: tuple[int, ...],
    device: torch.device,
    precision: str,
    *,
    num_devices: int = 1,
) -> Throughput:
    """For training this model on this split; on an unknown device peak_share is left out.

    precision: fp32, tf32, bf16 or fp16. num_devices: that do the work, all of one kind.
    """
    if precision == "fp32" and torch.backends.cudnn.allow_tf32 and _has_convolutions(model):
        precision = "tf32"  # in which torch computes those, where the device has it
    peak = peak_flops(device_name(device), precision)
    if peak is None:
        return Throughput()
    flops = flops_per_example(model, split, input_shape)
    return Throughput(None if flops is None else flops / (peak * num_devices))


def _has_convolutions(model: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in model.modules())


def flops_per_example(model: nn.Module, split: Split, input_shape: tuple[int, ...]) -> float | None:
    """FLOPs of a training step, forward and backward; None where they can't be counted.

    Nothing is computed and the model is not touched: a copy on fake tensors runs instead.
    """
    # Not the meta device alone: transformers reads the values of its masks unless it is traced.
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    spec = split.input_spec(input_shape)
    if spec is None:
        return None
    shape, dtype = (2, *spec[0]), spec[1]
    counter = FlopCounterMode(display=False)
    try:
        with random_state.isolate_rng(), FakeTensorMode(allow_non_fake_inputs=True), counter:
            device = next(model.parameters()).device
            inputs = torch.empty(shape, dtype=dtype, device=device)
            copy_as_fake(model).train()(inputs).sum().backward()
    except Exception as error:  # each network has its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.info("no train/peak_share, as the model can't be counted: {}", reason)
        return None
    return counter.get_total_flops() / shape[0]


def copy_as_fake(model: nn.Module) -> nn.Module:
    """A copy in a FakeTensorMode, without copying weights.

    Not torch.func.functional_call: attributes that a network sets in forward() would be set on the
    model itself.
    """
    copies: dict[int, Tensor] = {
        id(p): nn.Parameter(torch.empty_like(p), p.requires_grad) for p in model.parameters()
    }
    copies |= {id(b): torch.empty_like(b) for b in model.buffers()}
    return copy.deepcopy(model, copies)  # type: ignore[arg-type]


# ---- What GPUs can do at most ------------------------------------------------------------

# Names as torch.cuda.get_device_name gives them -> TFLOP/s by precision. tf32, bf16 and fp16 are
# tensor cores' products with sums in fp32, as torch computes them: on GeForce cards that is half
# of what is advertised. GPUs before Ampere compute tf32 as fp32, and have no bf16.
# Sources: NVIDIA's data sheets of V100, T4, A100, A40, L4, L40S, H100 and H200; its white papers
# "Turing GPU Architecture" (2080 and 2080 Ti, at reference clocks), "Ampere GA102 GPU Architecture"
# (3090, A5000, A6000) and "Ada GPU Architecture" (4090). Where a sheet counts sparsity, half of
# its number stands here.
PEAKS: dict[str, dict[str, float]] = {
    r"Tesla V100-SXM\d.*": {"fp32": 15.7, "tf32": 15.7, "fp16": 125},
    r"Tesla V100-PCIE.*": {"fp32": 14, "tf32": 14, "fp16": 112},
    r"Tesla T4": {"fp32": 8.1, "tf32": 8.1, "fp16": 65},
    r".*RTX 2080": {"fp32": 10.1, "tf32": 10.1, "fp16": 40.3},
    r".*RTX 2080 Ti": {"fp32": 13.4, "tf32": 13.4, "fp16": 53.8},
    r".*A100[- ].*": {"fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312},
    r".*RTX 3090": {"fp32": 35.6, "tf32": 35.6, "bf16": 71, "fp16": 71},
    r".*RTX A5000": {"fp32": 27.8, "tf32": 55.6, "bf16": 111.1, "fp16": 111.1},
    r".*RTX A6000": {"fp32": 38.7, "tf32": 77.4, "bf16": 154.8, "fp16": 154.8},
    r"NVIDIA A40": {"fp32": 37.4, "tf32": 74.8, "bf16": 149.7, "fp16": 149.7},
    r".*RTX 4090": {"fp32": 82.6, "tf32": 82.6, "bf16": 165.2, "fp16": 165.2},
    r"NVIDIA L4": {"fp32": 30.3, "tf32": 60, "bf16": 121, "fp16": 121},
    r"NVIDIA L40S": {"fp32": 91.6, "tf32": 183, "bf16": 362, "fp16": 362},
    r"NVIDIA H100 80GB HBM3": {"fp32": 67, "tf32": 494.5, "bf16": 989.5, "fp16": 989.5},
    r"NVIDIA H100 PCIe": {"fp32": 51, "tf32": 378, "bf16": 756, "fp16": 756},
    r"NVIDIA H200": {"fp32": 67, "tf32": 494.5, "bf16": 989.5, "fp16": 989.5},
}


def peak_flops(name: str, precision: str) -> float | None:
    """FLOP/s of the device of this name; None: not known, as for a part of a GPU (MIG)."""
    if "MIG" in name:
        return None
    found = [of for pattern, of in PEAKS.items() if re.fullmatch(pattern, name)]
    tera = found[0].get(precision) if found else None
    return None if tera is None else tera * 1e12


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
