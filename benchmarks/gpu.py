"""What the settings bring on a GPU, ours beside the bare loop: make bench-gpu, about 15 minutes.

    python benchmarks/gpu.py                          on the first CUDA device
    python benchmarks/gpu.py --device cpu --tiny      all of it in small: whether it works

What it prints is kept by hand as benchmarks/DATE-gpu.md, the machine with it. A network and its
settings: ours and the bare loop take turns, in processes of their own.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import datetime
import math
import platform
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from benchmarks.settings import Work

FAST: dict[str, Any] = {"precision": "bf16", "channels_last": True, "compile": True}
GRAPHS: dict[str, Any] = {"compile": "reduce-overhead"}
NUM_WORKERS = 8
# (network, batch, steps in a segment, side of an image)
LARGE = [("tiny/wrn_28_10", 512, 20, 32), ("timm/resnet50", 512, 20, 224)]
SMALL = [
    ("tiny/lenet", 32, 1000, 32),
    ("tiny/lenet", 128, 1000, 32),
    ("tiny/wrn_10_1", 32, 500, 32),
]
TINY_LARGE = [("tiny/lenet", 8, 50, 32)]
TINY_SMALL = [("tiny/lenet", 4, 50, 32)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small networks, few steps")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    import torch

    from benchmarks.settings import CONTESTANTS, compare_settings, with_settings, work_as

    if options.worker:
        work_as(CONTESTANTS, options.worker)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no CUDA device here (in small: --device cpu --tiny)", file=sys.stderr)
        return 2
    print(f"{datetime.date.today()}, {machine(options.device)}\n", flush=True)
    large = works(TINY_LARGE if options.tiny else LARGE, options)
    small = works(TINY_SMALL if options.tiny else SMALL, options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_images(large + small, folder)
        cases = [with_settings(work, FAST) for work in large]
        compare_settings("Large networks", cases, folder, is_one_by_one=True)
        loader_table([replace(work, **FAST) for work in large], folder)
        cases = [with_settings(work, GRAPHS) for work in small]
        compare_settings("Small networks, CUDA graphs beside eager", cases, folder)
    return 0


def works(rows: list[tuple[str, int, int, int]], options: argparse.Namespace) -> list["Work"]:
    from benchmarks.settings import Work

    common = {"device": options.device, "turns": 1 if options.tiny else 5}
    return [
        Work(model, batch, steps, side=side, **common)  # type: ignore[arg-type]
        for model, batch, steps, side in rows
    ]


def machine(device: str) -> str:
    import torch

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return f"{name}, Python {platform.python_version()}, torch {torch.__version__}"


def make_images(all_works: list["Work"], folder: Path) -> None:
    """Of each size, whole batches of whatever size."""
    from benchmarks.inputs import make_small_images
    from benchmarks.settings import images_of

    for side in {work.side for work in all_works}:
        of_size = [work for work in all_works if work.side == side]
        number = 2 * math.lcm(*(work.batch_size for work in of_size))
        make_small_images(images_of(of_size[0], folder) / "train", number, side)


def loader_table(works: list["Work"], folder: Path) -> None:
    """Of a step's time, what it waits for its batch."""
    from benchmarks.settings import contestant
    from benchmarks.turns import seconds_of_turns

    print("## Share of a step that waits for its batch: train/data_time over train/time\n")
    print("| network | batch | settings | images | share |")
    print("|---|--:|---|---|--:|", flush=True)
    for work in works:
        num_workers = min(NUM_WORKERS, os.cpu_count() or 1)
        read = replace(work, is_cached=False, num_workers=num_workers)
        for each, words in ((work, "on the device"), (read, f"read by {num_workers} workers")):
            process = contestant(each, "loader share", folder)
            share = statistics.median(seconds_of_turns({words: process}, each.turns)[words])
            process.close()
            row = (
                f"| {each.model} | {each.batch_size} | {each.describe()} | {words} | {share:.1%} |"
            )
            print(row, flush=True)
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
