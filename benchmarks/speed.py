"""What each setting brings on a CPU, and image trainers beside each other; part of make bench.

    python benchmarks/speed.py                      every table, about 30 minutes
    python benchmarks/speed.py compiled precision   some of them

compiled, precision: the bare loop and ours with the same settings, one thread. trainers: images
read by two worker processes, beside other trainers. processes: two that share each batch, one
thread each, beside one. Contestants take turns (benchmarks/turns.py); ratios are medians over
the turns.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import argparse
import datetime
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

NUM_IMAGES = 5120  # whole batches of 128: nobody has a short one
COMPILED = {"compile": True}
BF16 = {"precision": "bf16"}
LAST = {"channels_last": True}
ALONE_OR_TWO = (1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", help=f"some of {', '.join(TABLES)}")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.worker)
    from benchmarks.bench import machine, make_dense
    from benchmarks.inputs import make_small_images

    cores = len(os.sched_getaffinity(0))
    print(f"{datetime.date.today()}, {machine()}, {cores} of the cores\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make_dense(Path(folder))
        make_small_images(Path(folder) / "images" / "32" / "train", NUM_IMAGES)
        for table in options.tables or TABLES:
            TABLES[table](Path(folder))


def work(words: list[str]) -> None:
    """The other end of a contestant."""
    import torch

    from benchmarks.image_trainers import TRAINERS
    from benchmarks.settings import CONTESTANTS, work_as

    torch.set_num_threads(1)
    is_trainer = '"num_workers": 0' not in words[0]
    work_as(TRAINERS if is_trainer else CONTESTANTS, words)


# ---- Tables ------------------------------------------------------------------------------


def compiled_table(folder: Path) -> None:
    from benchmarks.settings import Work, compare_settings, with_settings

    works = [
        Work("linear", 100, 2000, turns=7),
        Work("linear", 8192, 70, turns=7),
        Work("tiny/lenet", 128, 100),
        Work("tiny/wrn_10_1", 128, 30),
    ]
    title = "Compiled, beside eager"
    compare_settings(title, [with_settings(w, COMPILED) for w in works], folder)


def precision_table(folder: Path) -> None:
    from benchmarks.settings import Work, compare_settings, with_settings

    settings = [LAST, *([BF16, BF16 | LAST, BF16 | LAST | COMPILED] if computes_bf16() else [])]
    if not computes_bf16():
        print("No rows of bf16: this CPU has neither AMX nor AVX512_BF16.\n")
    works = [Work("tiny/lenet", 128, 100), Work("tiny/wrn_16_4", 32, 5)]
    title = "Precision and memory format, beside fp32"
    compare_settings(title, [with_settings(w, *settings) for w in works], folder)


def computes_bf16() -> bool:
    """Whether the CPU has instructions for it: without them it is slower than float32."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return "amx_bf16" in flags or "avx512_bf16" in flags


def trainers_table(folder: Path) -> None:
    """One row a trainer; all but `ours, data_on_device` read files in two workers."""
    from benchmarks.image_trainers import TRAINERS
    from benchmarks.settings import Work, contestant
    from benchmarks.turns import measured, times_as_fast

    print("## Trainers on 32 x 32 PNG files, padded, cropped and flipped, two workers\n")
    print(
        "| network | precision | trainer | images per second | ours / theirs | CPU, µs an image |"
    )
    print("|---|---|---|--:|--:|--:|", flush=True)
    lenet, wide = (
        Work(model, 128, num_steps, num_workers=2)
        for model, num_steps in (("tiny/lenet", 80), ("tiny/wrn_10_2", 10))
    )
    works = [lenet, wide]
    if computes_bf16():
        works += [replace(work, precision="bf16") for work in works]
    for work in works:
        running = {name: contestant(work, name, folder) for name in TRAINERS}
        seconds, of_cpu = measured(running, work.turns)
        amount = work.batch_size * work.num_steps
        for name, found in seconds.items():
            rate, ratio = amount / statistics.median(found), times_as_fast(seconds["ours"], found)
            shown = " | ".join([work.model, work.precision, name])
            print(
                f"| {shown} | {rate:,.0f} | {ratio:.2f} | {1e6 * of_cpu[name] / amount:.0f} |",
                flush=True,
            )
        for process in running.values():
            process.close()
    print(flush=True)


def processes_table(folder: Path) -> None:
    """Two processes and one of one thread each, the same batch."""
    from benchmarks.settings import Work, contestant
    from benchmarks.turns import seconds_of_turns, times_as_fast

    print("## Two processes that share each batch, beside one\n")
    print("| network | batch | one, examples per second | two | two / one | efficiency |")
    print("|---|--:|--:|--:|--:|--:|", flush=True)
    works = [Work("linear", 8192, 70, turns=7), Work("tiny/lenet", 128, 100)]
    works += [Work("tiny/wrn_16_4", 128, 4)]
    for work in works:
        both = [replace(work, num_processes=number) for number in ALONE_OR_TWO]
        running = {w: contestant(w, "ours", folder) for w in both}
        one, two = seconds_of_turns(running, work.turns).values()
        for process in running.values():
            process.close()
        amount, gain = work.batch_size * work.num_steps, times_as_fast(two, one)
        rates = [f"{amount / statistics.median(found):,.0f}" for found in (one, two)]
        shown = " | ".join([work.model, str(work.batch_size), *rates])
        print(f"| {shown} | {gain:.2f} | {gain / 2:.2f} |", flush=True)
    print(flush=True)


TABLES: dict[str, Callable[[Path], None]] = {
    "compiled": compiled_table,
    "precision": precision_table,
    "trainers": trainers_table,
    "processes": processes_table,
}

if __name__ == "__main__":
    main()
