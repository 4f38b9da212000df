"""How fast training is: examples a second, the fraction of the peak FLOP/s (mfu), and with the key
profile where the time of a few steps goes, as a trace and in the log.

The work is that of the model, forward and backward, as torch's counter finds it in its matrix
products, convolutions and attention; a multiply-add counts 2. Loss and optimizer count nothing.
"""

import copy
import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import torch
from loguru import logger
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from src.data import Split
from src.runtime.run_length import StepSchedule
from src.runtime.train_state import TrainState
from src.support import UserError, random_state, write_atomically


def epoch_throughput(
    state: TrainState, schedule: StepSchedule, steps: range, seconds_at_peak: float | None
) -> dict[str, float]:
    """The columns of an epoch's training, interrupted or not; steps: those of the epoch.

    seconds_at_peak: see below; None: not known.
    """
    seconds, seen = state.training.seconds, schedule.samples_after(state.step)
    per_second = (seen - schedule.samples_after(steps.start)) / max(seconds, 1e-9)
    found = {"time": seconds, "data_time": state.data_time}
    found |= {"seen_examples": seen, "examples_per_second": per_second}
    if seconds_at_peak is not None:
        found["peak_share"] = per_second * seconds_at_peak
    return found


def seconds_at_peak(
    model: nn.Module,
    split: Split,
    input_shape: tuple[int, ...],
    device: torch.device,
    precision: str,
    *,
    num_devices: int = 1,
) -> float | None:
    """How long an example would take at peak FLOP/s; None: the device or the work is not known.

    precision: fp32, tf32, bf16 or fp16. num_devices: that do the work, all of one kind.
    """
    has_tf32 = precision == "fp32" and torch.backends.cudnn.allow_tf32
    if has_tf32 and any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in model.modules()):
        precision = "tf32"  # in which torch computes convolutions, where the device has it
    is_gpu = device.type == "cuda"
    peak = peak_flops(torch.cuda.get_device_name(device) if is_gpu else device.type, precision)
    if peak is None or (flops := flops_per_example(model, split, input_shape)) is None:
        return None
    return flops / (peak * num_devices)


def flops_per_example(model: nn.Module, split: Split, input_shape: tuple[int, ...]) -> float | None:
    """FLOPs of a training step, forward and backward; None where they can't be counted.

    Nothing is computed and the model is not touched: a copy on fake tensors runs instead, which
    has no weights. Not by torch.func.functional_call: attributes that a network sets in forward()
    would be set on the model itself. Not on the meta device alone: transformers reads the values
    of its masks unless it is traced.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    spec = split.input_spec(input_shape)
    if spec is None:
        return None
    shape, dtype = (2, *spec[0]), spec[1]
    counter = FlopCounterMode(display=False)
    try:
        with random_state.isolate_rng(), FakeTensorMode(allow_non_fake_inputs=True), counter:
            fakes: dict[int, Any] = {
                id(p): nn.Parameter(torch.empty_like(p), p.requires_grad)
                for p in model.parameters()
            }
            fakes |= {id(b): torch.empty_like(b) for b in model.buffers()}
            device = next(model.parameters()).device
            inputs = torch.empty(shape, dtype=dtype, device=device)
            copy.deepcopy(model, fakes).train()(inputs).sum().backward()
    except Exception as error:  # each network has its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.info("no train/peak_share, as the model can't be counted: {}", reason)
        return None
    return counter.get_total_flops() / shape[0]


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
    found = [of for pattern, of in PEAKS.items() if re.fullmatch(pattern, name)]
    tera = found[0].get(precision) if found and "MIG" not in name else None
    return None if tera is None else tera * 1e12


# ---- profile: STEPS ----------------------------------------------------------------------

TRACE = "trace.json.gz"
WARM_UP = 5  # steps before, in which memory is allocated and kernels are chosen
NUM_OPERATIONS = 10
NAME_WIDTH = 28  # a line on a terminal, with its time of day, has 80 columns


class NoProfiler:
    """Nothing is recorded."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        pass

    def steps(self, steps: range, state: TrainState, num_steps: int) -> Iterable[int]:
        """These steps of one epoch; num_steps: of the whole run."""
        return steps


class Profiler(NoProfiler):
    """Records the first `wanted` steps of this attempt after a warm-up, and nothing in between.

    A context around training, in which steps() goes around the steps of each epoch. Where an
    epoch ends, recording pauses until the next one: evaluations are not recorded. A run
    that ends or is stopped before writes what it has, in the place of an earlier attempt's; a
    failure is a warning, and training continues.
    """

    def __init__(self, wanted: int, folder: Path, device: torch.device) -> None:
        self.wanted, self.folder, self.device = wanted, folder, device
        self.is_on_gpu = device.type == "cuda"
        self.warm_up: int | None = None  # steps still to come; None: training has not begun
        self.num_recorded = 0
        self.running: profile | None = None
        self.parts: list[profile] = []  # one an epoch
        self.seconds = self.data_seconds = 0.0  # recorded, and spent waiting for data
        self.since = (0.0, 0.0)  # both clocks, when recording was resumed
        # Its progress would be printed over ours; read when the first recording starts.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if not isinstance(error, UserError):  # such as that the folder is not ours any more
            self._write()

    def steps(self, steps: range, state: TrainState, num_steps: int) -> Iterator[int]:
        if self.warm_up is None:  # as long as fits
            self.warm_up = max(0, min(WARM_UP, num_steps - state.step - self.wanted))
        try:
            for step in steps:
                if self.warm_up or self.num_recorded == self.wanted:
                    self.warm_up = max(0, self.warm_up - 1)
                    yield step
                    continue
                self._resume(state)
                self.num_recorded += 1
                with record_function(f"step {step + 1}"):
                    yield step
                if self.num_recorded == self.wanted:
                    self._pause(state)
                    state.training.stop()  # writing is no training
                    self._write()
                    state.training.start()
        finally:
            self._pause(state)

    def _resume(self, state: TrainState) -> None:
        if self.running:
            return
        activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * self.is_on_gpu]
        with _warn_on_failure():
            if self.is_on_gpu:  # what earlier steps have left to do is not recorded
                torch.cuda.synchronize(self.device)
            running = profile(activities=activities)
            running.start()
            self.running = running
        if self.running is None:
            self.wanted = self.num_recorded + 1  # not tried again
        self.since = perf_counter(), state.data_time

    def _pause(self, state: TrainState) -> None:
        if self.running is None:
            return
        running, self.running = self.running, None
        with _warn_on_failure():
            if self.is_on_gpu:
                torch.cuda.synchronize(self.device)
            began, waited = self.since
            self.seconds += perf_counter() - began
            self.data_seconds += state.data_time - waited
            running.stop()
            self.parts.append(running)

    def _write(self) -> None:
        """The file and the lines of the log, once, where anything was recorded."""
        parts, self.parts = self.parts, []
        if not parts:
            return
        with _warn_on_failure():
            temporary = self.folder / f".trace.json.{os.getpid()}"
            traces = []
            try:
                for part in parts:  # those of one process count from the same moment
                    part.export_chrome_trace(str(temporary))
                    traces.append(json.loads(temporary.read_text()))
            finally:
                temporary.unlink(missing_ok=True)
            events = [event for trace in traces for event in trace["traceEvents"]]
            content = json.dumps(traces[0] | {"traceEvents": events})
            write_atomically(self.folder / TRACE, gzip.compress(content.encode()))
            where = "GPU" if self.is_on_gpu else "CPU"
            words = "{} steps were recorded in {}; own time on the {}:"
            logger.info(words, self.num_recorded, TRACE, where)
            for line in table(own_times(parts, is_on_gpu=self.is_on_gpu)):
                logger.info(line)
            share = self.data_seconds / self.seconds
            logger.info("{:.1%} of {:.3f} s training waited for data", share, self.seconds)


def build_profiler(wanted: int | None, folder: Path | None, device: torch.device) -> NoProfiler:
    """None: nothing is recorded. Raises UserError where there is no folder for a trace."""
    if wanted is None:
        return NoProfiler()
    if folder is None:
        raise UserError(f"profile: got {wanted}, but output_dir is null: nowhere to write {TRACE}")
    return Profiler(wanted, folder, device)


@contextmanager
def _warn_on_failure() -> Iterator[None]:
    """A failed profile is no reason to lose a run."""
    try:
        yield
    except Exception as error:
        logger.warning("no profile: {}: {}", type(error).__name__, error)


def own_times(parts: Iterable[profile], *, is_on_gpu: bool) -> dict[str, tuple[float, int]]:
    """Operation -> (seconds without those that it calls, calls); marks such as ours are none.

    A kernel's time on a GPU is that of the operation that launched it.
    """
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for part in parts:
        for event in part.key_averages():
            if event.device_type == DeviceType.CPU and not event.is_user_annotation:
                own = event.self_device_time_total if is_on_gpu else event.self_cpu_time_total
                seconds[event.key] += own / 1e6
                calls[event.key] += event.count
    return {name: (seconds[name], calls[name]) for name in seconds}


def table(times: dict[str, tuple[float, int]]) -> Iterator[str]:
    """A line each of the costliest operations: fraction of all, milliseconds, calls, name."""
    total = sum(seconds for seconds, _ in times.values()) or 1.0
    costliest = sorted(times.items(), key=lambda item: -item[1][0])[:NUM_OPERATIONS]
    for name, (seconds, calls) in costliest:
        short = name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…"
        yield f"{seconds / total:6.1%}  {1000 * seconds:10,.2f} ms  {calls:9,} calls  {short}"
