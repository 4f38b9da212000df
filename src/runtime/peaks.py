"""What GPUs can do at most: the vendor's numbers of dense operations, without sparsity."""

import re

import torch

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
    """FLOP/s of the device of this name; None where nobody knows, as of a part of a GPU (MIG)."""
    if "MIG" in name:
        return None
    found = [of for pattern, of in PEAKS.items() if re.fullmatch(pattern, name)]
    tera = found[0].get(precision) if found else None
    return None if tera is None else tera * 1e12


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
