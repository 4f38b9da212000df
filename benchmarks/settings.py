"""The bare loop and ours with the same precision, compilation and memory format, on any device.

Images are cached on the device by both, as bytes: a batch is a gather and a normalisation.
"""

import hashlib
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.contestants import PlainAverage, adam, covtype_like, our_run, shuffled, train_bare
from benchmarks.contestants import ours as our_segments
from benchmarks.turns import (
    Contestant,
    Segments,
    answer,
    measured,
    own_folder,
    times_as_fast,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 10


@dataclass(frozen=True)
class Work:
    """What the contestants of a row do. Steps are those of a segment."""

    model: str
    batch_size: int
    num_steps: int
    side: int = 32  # of the images, in pixels
    precision: str = "fp32"
    channels_last: bool = False
    compile: str | bool = False
    device: str = "cpu"
    num_workers: int = 0
    is_cached: bool = True  # images, on the device
    num_processes: int = 1
    turns: int = 5

    def describe(self) -> str:
        """'bf16, channels last, compiled'."""
        words = [self.precision, *["channels last"] * self.channels_last]
        mode = "" if self.compile is True else f" ({self.compile})"
        return ", ".join([*words, f"compiled{mode}"] if self.compile else words)


def images_of(work: Work, folder: Path) -> Path:
    """Where train/CLASS/N.png lie."""
    return folder / "images" / str(work.side)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True)


def network(work: Work) -> nn.Module:
    """From the family's own builder, where the model lives."""
    from src.models.registry import FAMILIES

    family, _, name = work.model.partition("/")
    model, _ = FAMILIES[family].build(name, (3, work.side, work.side), CLASSES)
    model = model.to(work.device)
    return model.to(memory_format=torch.channels_last) if work.channels_last else model


# ---- The bare loop -----------------------------------------------------------------------


def bare(work: Work, folder: Path) -> Segments:
    """Tensors on the device, randperm, gather, the network as the settings have it."""
    if work.model == "linear":
        inputs, targets = covtype_like()
        model = nn.Linear(54, 7)
        optimizer, average = adam(model), PlainAverage(model).update
        batches: Iterator[Any] = (
            (inputs[i], targets[i]) for i in shuffled(len(targets), work.batch_size)
        )
        return train_bare(forward_of(model, work), batches, optimizer, work.num_steps, average)
    model, batches = network(work), cached_batches(work, folder)
    return train_bare(forward_of(model, work), batches, sgd(model), work.num_steps)


def cached_batches(work: Work, folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    from torchvision.datasets import ImageFolder

    images, numbers = zip(*ImageFolder(str(images_of(work, folder) / "train")), strict=True)
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in images])
    pixels = pixels.permute(0, 3, 1, 2).contiguous().to(work.device)
    targets = torch.tensor(numbers).to(work.device)
    mean, std = (torch.tensor(x, device=work.device)[:, None, None] for x in (MEAN, STD))
    scale, shift = 1 / (255 * std), -mean / std
    for chosen in shuffled(len(targets), work.batch_size):
        there = chosen.to(work.device, non_blocking=True)
        yield pixels[there].float().mul_(scale).add_(shift), targets[there]


def forward_of(model: nn.Module, work: Work) -> Callable[[Tensor], Tensor]:
    """As one would write it: compiled, in autocast, with the channels last."""
    mode = "default" if work.compile is True else work.compile
    called: Any = torch.compile(model, mode=mode, dynamic=False) if mode else model
    if work.precision == "fp32" and not work.channels_last:
        return called
    is_bf16, kind = work.precision == "bf16", torch.device(work.device).type

    def forward(x: Tensor) -> Tensor:
        if work.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(kind, torch.bfloat16) if is_bf16 else nullcontext():
            outputs = called(x)
        return outputs.float()

    return forward


# ---- Ours --------------------------------------------------------------------------------


def our_keys(work: Work, folder: Path) -> dict[str, Any]:
    computing = ("precision", "channels_last", "compile", "device", "num_workers")
    keys = {key: getattr(work, key) for key in computing}
    keys |= {"multi_gpu": work.num_processes > 1}
    if work.num_processes > 1:  # all of them end together, in the one folder
        keys |= {"train_length": work.turns + 2, "output_dir": str(folder / "run")}
    if work.model == "linear":
        return keys
    keys |= {"dataset": f"timm/folder/{images_of(work, folder)}", "data_on_device": work.is_cached}
    return keys | {"model": work.model} | {"optim_alg": "sgd", "base_lr": 0.01, "averaging": None}


def ours(work: Work, folder: Path, **keys: Any) -> Segments:
    keys = our_keys(work, folder) | keys
    return in_step(our_segments(work.batch_size, work.num_steps, folder, **keys))


def in_step(segments: Segments) -> Segments:
    """Of several processes all begin a segment when the first is asked for it."""
    while True:
        if dist.is_initialized():
            dist.barrier()
        yield next(segments)


def loader_share(work: Work, folder: Path, **keys: Any) -> Segments:
    """Of each epoch's training, the share that it waited for data: what stats.csv says."""
    keys = our_keys(work, folder) | keys
    for stats, _ in our_run(work.batch_size, work.num_steps, folder, **keys):
        yield float(stats["train/data_time"].iloc[-1] / stats["train/time"].iloc[-1])


CONTESTANTS: dict[str, Callable[[Work, Path], Segments]] = {
    "bare loop": bare,
    "ours": ours,
    "loader share": loader_share,
}


# ---- Taking turns ------------------------------------------------------------------------


def contestant(work: Work, name: str, folder: Path) -> Contestant:
    return Contestant(sys.argv[0], "--worker", json.dumps(asdict(work)), name, str(folder))


def work_as(
    contestants: Mapping[str, Callable[[Work, Path], Segments]], words: Sequence[str]
) -> None:
    """The other end of a contestant, after --worker; with its fellows where there are several."""
    from src.runtime.command_line import launch_processes
    from src.support import processes

    work, name, folder = Work(**json.loads(words[0])), words[1], Path(words[2])
    if work.num_processes > 1 and processes.detect_rank(os.environ) is None:
        sys.exit(launch_processes([sys.argv[0], "--worker", *words], work.num_processes))
    digest = hashlib.sha256(words[0].encode()).hexdigest()[:12]
    segments = contestants[name](work, own_folder(folder, f"{name} {digest}"))
    if processes.is_main_process():
        answer(segments)
    for _ in range(work.turns + 1):
        next(segments)


def _compared(work: Work, seconds: Sequence[Sequence[float]]) -> list[str]:
    """seconds: of the bare loop, of ours, and of ours with the plain settings."""
    bares, own, plain = seconds
    ms = [1000 * statistics.median(found) / work.num_steps for found in (bares, own)]
    ratios = times_as_fast(own, bares), times_as_fast(own, plain)
    return [f"{number:.2f}" for number in (*ms, *ratios)]


def compare_settings(
    title: str, cases: Sequence[Sequence[Work]], folder: Path, *, is_one_by_one: bool = False
) -> None:
    """A table: of each case the settings beside each other, the first of them the plain ones, by
    the clock and, as others may use the machine, by the processor's time.

    is_one_by_one: of a case's settings, as all at once do not fit in a GPU's memory.
    """
    print(f"## {title}\n")
    print(
        "| network | batch | settings | bare loop, ms | ours, ms | ours / bare loop | gain |",
        end="",
    )
    print(" CPU: bare loop, ms | ours, ms | ours / bare loop | gain |")
    print("|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    for works in cases:
        seconds: dict[tuple[Work, str], list[float]] = {}
        of_cpu: dict[tuple[Work, str], float] = {}
        for group in [[work] for work in works] if is_one_by_one else [works]:
            running = {
                (work, who): contestant(work, who, folder)
                for work in group
                for who in ("bare loop", "ours")
            }
            found = measured(running, works[0].turns)
            seconds, of_cpu = seconds | found[0], of_cpu | found[1]
            for process in running.values():
                process.close()
        for work in works:
            pairs = [(work, "bare loop"), (work, "ours"), (works[0], "ours")]
            shown = [work.model, str(work.batch_size), work.describe()]
            shown += _compared(work, [seconds[pair] for pair in pairs])
            shown += _compared(work, [[of_cpu[pair]] for pair in pairs])
            print(f"| {' | '.join(shown)} |", flush=True)
    print(flush=True)


def with_settings(work: Work, *settings: dict[str, Any]) -> list[Work]:
    """The work as it is, and with each of these."""
    return [work, *(replace(work, **changes) for changes in settings)]
