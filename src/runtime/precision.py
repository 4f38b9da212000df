"""The device, the floating-point formats, the memory format and torch.compile."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from src.keys import CUDA_GRAPHS
from src.support import bad_value

Forward = Callable[[Tensor], Tensor]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
AMPERE = (8, 0)  # the first compute capability with tf32


@dataclass(frozen=True)
class Precision:
    """How a run computes: precision is fp32, tf32, bf16 or fp16; mode one of torch.compile's, or
    None. Weights, gradients, the optimizer, losses and metrics are float32 in all of them."""

    device: torch.device
    precision: str = "fp32"
    is_channels_last: bool = False
    mode: str | None = None
    failures: list[str] = field(default_factory=list)  # of compiling: after one nothing is

    def __post_init__(self) -> None:
        """UserError for a precision that the device does not have."""
        kind, expected = self.device.type, None
        if self.precision == "tf32" and kind != "cuda":
            reason = f"tf32 is of NVIDIA's GPUs, and the device is {kind}"
            expected = f"fp32, bf16 or fp16, as {reason}"
        elif self.precision == "tf32" and torch.cuda.get_device_capability(self.device) < AMPERE:
            reason = f"{torch.cuda.get_device_name(self.device)} is older than Ampere"
            expected = f"fp32, bf16 or fp16, as {reason}"
        elif self.precision == "fp16" and kind == "mps":
            expected = "fp32 or bf16 on mps, where losses are not scaled"
        if expected:
            raise bad_value("precision", self.precision, expected)

    @classmethod
    def on(
        cls, device: torch.device, precision: str, channels_last: bool, compile: str | bool
    ) -> "Precision":
        """By the keys of these names; not compiled, with a warning, where that is impossible."""
        mode = "default" if compile is True else compile or None
        plain = cls(device, precision, channels_last)  # first, as it raises
        return replace(plain, mode=mode) if mode and can_compile(device) else plain

    def to_memory_format(self, model: nn.Module) -> nn.Module:
        """The model with its convolutions' weights in the memory format, in place."""
        return model.to(memory_format=torch.channels_last) if self.is_channels_last else model  # type: ignore[call-overload]

    def compiled(
        self, network: nn.Module, num_examples: int, *, fixed_shape: bool = True
    ) -> nn.Module:
        """The network, compiled for batches of num_examples alone.

        fixed_shape: whether they all have the same shape, as texts have not.
        """
        if not self.mode:
            return network
        return Compiled(network, self.mode, num_examples, self.failures, fixed_shape=fixed_shape)

    def forward(self, network: nn.Module) -> Forward:
        """The network as it is to be called: inputs (n, *shape) -> float32 outputs."""
        if self.precision not in AUTOCAST and not self.is_channels_last:
            return network

        def cast(inputs: Tensor) -> Tensor:
            if self.is_channels_last and inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with self.autocast():
                outputs = network(inputs)
            return outputs.float() if self.precision in AUTOCAST else outputs

        return cast

    def autocast(self) -> AbstractContextManager[Any]:
        """For a network that is called as it is: matrix products and convolutions are of the
        precision's type, and so are its outputs."""
        dtype = AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss, so that small gradients survive fp16; elsewhere it does nothing."""
        is_on = self.precision == "fp16"
        return torch.amp.GradScaler(self.device.type if is_on else "cpu", enabled=is_on)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Settings of the process. tf32 is as it was afterwards; freed memory stays kept."""
        disable_malloc_trim()
        before = torch.get_float32_matmul_precision()
        if self.precision == "tf32":
            torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def describe(self) -> str:
        """'bf16, channels last, compiled (default)'."""
        layout = ", channels last" * self.is_channels_last
        compiled = f"compiled ({self.mode})" if self.mode else "not compiled"
        return f"{self.precision}{layout}, {compiled}"


# ---- torch.compile -----------------------------------------------------------------------


class Compiled(nn.Module):
    """The network compiled for full batches. Short ones, which would each be compiled for, and
    all where compiling fails, go through the network as it is."""

    def __init__(
        self,
        network: nn.Module,
        mode: str,
        num_examples: int,
        failures: list[str],
        *,
        fixed_shape: bool = True,
    ) -> None:
        """failures: shared by the networks of a run; where one fails, none is compiled."""
        super().__init__()
        self.network, self.num_examples, self.failures = network, num_examples, failures
        # of texts the lengths differ: None makes that dimension dynamic once it has changed
        dynamic = False if fixed_shape else None
        self.compiled: Any = torch.compile(network, mode=mode, dynamic=dynamic)
        self.has_graphs = mode in CUDA_GRAPHS

    def forward(self, inputs: Tensor) -> Tensor:
        if self.failures or len(inputs) != self.num_examples:
            return self.network(inputs)
        from torch._dynamo.exc import TorchDynamoException

        if self.has_graphs:
            torch.compiler.cudagraph_mark_step_begin()  # outputs of the call before are used up
        try:
            return self.compiled(inputs)
        except TorchDynamoException as error:
            self.failures.append(warn_not_compiled(error))
            return self.network(inputs)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here, tried on two numbers; else a warning says why."""
    from torch._dynamo.exc import TorchDynamoException

    def double(numbers: Tensor) -> Tensor:
        return 2 * numbers

    try:
        torch.compile(double)(torch.ones(2, device=device, requires_grad=True)).sum().backward()
    except (TorchDynamoException, RuntimeError) as error:
        warn_not_compiled(error)
        return False
    return True


def warn_not_compiled(error: Exception) -> str:
    """Log one line of what may be a page, and return it."""
    inner = getattr(error, "inner_exception", error)  # what the compiler itself says
    reason = next((line for line in str(inner).splitlines() if line.strip()), "")
    if not reason.startswith(type(inner).__name__):
        reason = f"{type(inner).__name__}: {reason}"
    logger.warning("compile: cannot be done here, the run continues without ({})", reason)
    return reason


# ---- The device, and its memory ----------------------------------------------------------


def pick_device(name: str | None) -> torch.device:
    """The requested device; None: cuda where there is one, else cpu. Raises UserError."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there_are = f"null or cpu, as {torch.cuda.device_count()} CUDA devices are visible"
        raise bad_value("device", name, there_are)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise bad_value("device", name, "null or cpu, as this machine has no MPS device")
    return device


def disable_malloc_trim() -> None:
    """Keep the memory that a step frees for the next one.

    glibc may return the end of its heap to the system after every step, and then fetches it again
    page by page: that depends on what was freed before, and costs a small network up to a third.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # malloc.h of glibc
        # M_MMAP_THRESHOLD: what is smaller comes from the heap; glibc raises it to 32 MB by itself
        libc.mallopt(-3, 32 * 2**20)
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: free memory is never returned
