"""Stacks of linear models beside one run after the other.

    python benchmarks/stacking.py           about twenty minutes; part of make bench
    python benchmarks/stacking.py grid      a part: steps, two-threads, evaluations, networks, grid

Steps and evaluations: seconds that a run says of itself, medians of several epochs; on one thread,
and the steps on two as well. The grid: processor time of whole commands on data of a9a's size.
Where a row is marked, one run of each batch size was measured and counted 18 times, as the others
differ in learning rate and momentum.
"""

import datetime
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bench import machine  # noqa: E402 - after the path
from benchmarks.start import processor_seconds  # noqa: E402
from src.config import make_config  # noqa: E402
from src.stacking import stacked_generator  # noqa: E402
from train import experiment_generator  # noqa: E402

SIZES = (8, 32, 128, 512, 2048, 8192)
STEPS = {8: 2000, 32: 2000, 128: 1000, 512: 400, 2048: 100, 8192: 25}  # of an epoch
EPOCHS = 5  # of which the first warms up
COMMON = {
    "model": "linear",
    "seed_model": 1,
    "seed_training": 1,
    "save_plot": False,
    "system_interval": 0,
    "log_interval": 10,
}
JOB = """\
job_details: {name: grid, output_dir: FOLDER}
parameters:
  dataset: benchmarks.stacking:a9a_sized
  model: linear
  batch_size: [8, 32, 128, 512, 2048, 8192]
  base_lr: RATES
  momentum: MOMENTA
  train_length: 20
  lr_schedule: cosine
  seed_model: 1
  seed_training: 1
  save_plot: false
"""


# What one writes without a framework, favourably: the data are ready in a file, and indexed as a
# whole rather than example by example.
PLAIN = """\
import sys

import numpy as np
import torch
import torch.nn.functional as F

batch_size, lr, momentum = int(sys.argv[1]), 0.25, 0.9
torch.manual_seed(1)
data = {name: torch.from_numpy(x) for name, x in np.load(sys.argv[2]).items()}
inputs, targets = data["inputs"], data["targets"]
model = torch.nn.Linear(inputs.shape[1], 2)
optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, nesterov=True)
steps = -(-len(inputs) // batch_size)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20 * steps)
for epoch in range(20):
    for chosen in torch.randperm(len(inputs)).split(batch_size):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs[chosen]), targets[chosen])
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        outputs = model(data["test_inputs"])
        test = F.cross_entropy(outputs, data["test_targets"]).item()
        accuracy = (outputs.argmax(1) == data["test_targets"]).double().mean().item()
    print(epoch, test, accuracy, flush=True)
torch.save(model.state_dict(), sys.argv[3])
"""


def generated(num_examples: int, num_features: int, n_classes: int, filled: float) -> dict:
    """Examples whose classes a linear model tells apart, but for some."""
    draw = np.random.default_rng(0)
    inputs = (draw.random((num_examples, num_features)) < filled).astype(np.float32)
    scores = inputs @ draw.normal(size=(num_features, n_classes)) * 2
    targets = (scores + draw.gumbel(size=scores.shape)).argmax(1)
    start = int(num_examples * 2 / 3)
    return {
        "train": (inputs[:start], targets[:start]),
        "test": (inputs[start:], targets[start:]),
    }


def a9a_sized(data_dir: str) -> dict:
    """32,561 examples to train on, 123 features of which 14 are filled, two classes."""
    return generated(48_842, 123, 2, 0.113)


def covertype_sized(data_dir: str) -> dict:
    """Few examples to train on, 581,012 to evaluate, 54 features, 7 classes."""
    inputs, targets = generated(900_000, 54, 7, 0.25)["train"]
    return {
        "train": (inputs[:1000], targets[:1000]),
        "test": (inputs[-581_012:], targets[-581_012:]),
    }


def main(parts: list[str]) -> None:
    torch.set_num_threads(1)
    print(f"{datetime.date.today()}, {machine()}\n", flush=True)
    every = {
        "steps": steps,
        "two-threads": steps_on_two_threads,
        "evaluations": evaluations,
        "networks": networks,
        "grid": grids,
    }
    for part in parts or every:
        every[part]()


# ---- Steps -------------------------------------------------------------------------------


def steps(num_threads: int = 1, sizes: Sequence[int] = SIZES) -> None:
    torch.set_num_threads(num_threads)
    threads = "one thread" if num_threads == 1 else f"{num_threads} threads"
    print(f"| {threads}: batch size | solo, ordinary | solo, stacked ", end="")
    print("| 18 rows | 108 rows | bare loop, µs |\n|--:|--:|--:|--:|--:|--:|")
    for size in sizes:
        keys = COMMON | {"dataset": "benchmarks.stacking:a9a_sized", "batch_size": size}
        keys |= {"steps_per_epoch": STEPS[size], "train_length": EPOCHS}
        keys |= {"data_splits_map": {"train": "train", "test": "test[:100]"}}
        bare = bare_step(size) * 1e6
        ordinary = seconds_of(keys, 0) / STEPS[size] * 1e6
        together = {n: seconds_of(keys, n) / STEPS[size] * 1e6 for n in (1, 18, 108)}
        of_solo = [f"{together[n] / (n * ordinary):.3f} of solo × {n}" for n in (18, 108)]
        print(
            f"| {size} | {ordinary / bare:.2f} | {together[1] / bare:.2f} | {of_solo[0]} | "
            f"{of_solo[1]} | {bare:.0f} |",
            flush=True,
        )
    print(flush=True)


def steps_on_two_threads(sizes: Sequence[int] = SIZES) -> None:
    """In a process of its own, whose pool of threads nothing has used before."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(steps, 2, sizes).result()


def seconds_of(keys: dict, num_rows: int, column: str = "train/time") -> float:
    """An epoch's median; num_rows: 0: the ordinary path."""
    if not num_rows:
        *_, (stats, _) = experiment_generator(make_config(keys | {"base_lr": 0.25}))
    else:
        rates = [0.25 * (1 + n) / num_rows for n in range(num_rows)]
        rows = [{"base_lr": rate, "engine": "stacked", "output_dir": None} for rate in rates]
        *_, (all_stats, _) = stacked_generator([make_config(keys | row) for row in rows])
        stats = all_stats[0]
    return statistics.median(stats[column][1:])


def bare_step(size: int) -> float:
    """Of a plain loop: gather, forward, backward, fused Nesterov, sums of losses and hits."""
    inputs, targets = map(torch.as_tensor, a9a_sized("")["train"])
    model = nn.Linear(123, 2)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.25, momentum=0.9, nesterov=True, fused=True
    )
    seconds = []
    for _ in range(EPOCHS):
        order, loss_sum, hits = torch.randperm(len(inputs)), torch.zeros(()), torch.zeros(())
        started = perf_counter()
        for step in range(STEPS[size]):
            start = step * size % (len(inputs) - size)
            chosen = order[start : start + size]
            x, y = inputs[chosen], targets[chosen]
            outputs = model(x)
            loss = F.cross_entropy(outputs, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(y)
            hits += (outputs.argmax(1) == y).sum()
        seconds.append((perf_counter() - started) / STEPS[size])
    return statistics.median(seconds[1:])


def evaluations() -> None:
    keys = COMMON | {"dataset": "benchmarks.stacking:covertype_sized", "batch_size": 1000}
    keys |= {"steps_per_epoch": 1, "train_length": 4, "eval_batch_size": 8192}
    solo = seconds_of(keys, 0, "test/last/time")
    together = seconds_of(keys, 108, "test/last/time")
    print("| evaluating 581,012 × 54, 7 classes | seconds |\n|---|--:|")
    print(f"| one model, batches of 8192 | {solo:.3f} |")
    print(f"| 108 models in one pass | {together:.2f}, {together / (108 * solo):.2f} of 108 |\n")


# ---- Networks ----------------------------------------------------------------------------


def cifar_sized(data_dir: str) -> dict:
    """Few images of 3×32×32 in ten classes; made at random, as only time is measured."""
    draw = np.random.default_rng(0)
    images = draw.normal(size=(12_800, 3, 32, 32)).astype(np.float32)
    return {"train": (images, draw.integers(10, size=len(images)))}


def networks() -> None:
    """Steps of stacks, on a GPU where there is one, else of few rows."""
    is_gpu = torch.cuda.is_available()
    device, sizes, num_steps = ("cuda", (16, 64), 100) if is_gpu else ("cpu", (4,), 10)
    print(f"| {device}: batch size 128 | stacked, of one after the other |\n|---|--:|")
    for model in ("tiny/lenet", "tiny/resnet_20"):
        keys = COMMON | {"dataset": "benchmarks.stacking:cifar_sized", "batch_size": 128}
        keys |= {"model": model, "device": device, "data_splits_map": {"train": "train"}}
        keys |= {"steps_per_epoch": num_steps, "train_length": EPOCHS}
        solo = seconds_of(keys, 0)
        for num_rows in sizes:
            together = seconds_of(keys, num_rows)
            print(f"| {model}, {num_rows} rows | {together / (num_rows * solo):.2f} |", flush=True)
    print()
    bits_of_networks()


def bits_of_networks() -> None:
    """In how many random shapes do the bits of a row depend on the others in its stack?"""
    print("| networks, one thread, three steps of SGD | bits depend on the stack |\n|---|--:|")
    draw = random.Random(0)
    torch.manual_seed(0)
    for kind, build in {
        "perceptrons": perceptron,
        "convolutions, batch norm": convolutional,
    }.items():
        found = sum(depends_on_the_stack(build, draw) for _ in range(20))
        print(f"| {kind} | in {found} of 20 random shapes |", flush=True)
    print()


def perceptron(draw: random.Random) -> nn.Module:
    width, n_classes = draw.randint(3, 120), draw.randint(2, 11)
    layers = [nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, n_classes))


def convolutional(draw: random.Random) -> nn.Module:
    width, n_classes = draw.randint(3, 20), draw.randint(2, 11)
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64 * width, n_classes))


def depends_on_the_stack(build: Callable[[random.Random], nn.Module], draw: random.Random) -> bool:
    shape = draw.getstate()

    def another() -> nn.Module:
        draw.setstate(shape)
        return build(draw)

    models = [another() for _ in range(7)]
    batch_size, n_classes = draw.randint(2, 140), models[0][-1].out_features
    inputs, targets = torch.randn(batch_size, 3, 8, 8), torch.randint(n_classes, (batch_size,))

    def trained(rows: list[int]) -> list[Tensor]:
        """The weights of model 3, wherever it is among these rows."""
        weights, statistics = (
            {name: torch.stack([of[row][name].detach() for row in rows]) for name in of[0]}
            for of in ([dict(m.named_parameters()) for m in models], buffers)
        )

        def loss(own: dict, running: dict) -> Tensor:
            outputs = functional_call(models[0], (own, running), (inputs,))
            return F.cross_entropy(outputs, targets)

        for _ in range(3):
            for weight in weights.values():
                weight.requires_grad_()
            torch.vmap(loss)(weights, statistics).sum().backward()
            weights = {name: (w - 0.1 * w.grad).detach() for name, w in weights.items()}
        return [weight[rows.index(3)] for weight in weights.values()]

    buffers = [dict(model.named_buffers()) for model in models]
    alone = trained([3, 3])
    others = [trained(rows) for rows in ([0, 3], [6, 1, 3], [5, 4, 3, 2, 1, 0])]
    return any(not torch.equal(a, b) for own in others for a, b in zip(alone, own, strict=True))


# ---- A grid ------------------------------------------------------------------------------


def grids() -> None:
    """The 108 runs of jobs/linear-classifier-example.yaml, folders included."""
    whole = {"RATES": "'[float(x) for x in 2.0 ** np.arange(-6, 3)]'", "MOMENTA": "[0.0, 0.9]"}
    part = {"RATES": "0.25", "MOMENTA": "0.9"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = {
            "--stack auto": grid(folder / "stack", whole, "--stack", "auto"),
            "forks of a warm process *": 18 * grid(folder / "forks", part),
            "a process a run (--fresh) *": 18 * grid(folder / "fresh", part, "--fresh"),
            "a plain PyTorch script a run, without stats and states *": 18 * scripts(folder),
        }
    print("| 108 runs of 20 epochs | processor, s | of a process a run |\n|---|--:|--:|")
    for what, used in seconds.items():
        of_fresh = used / seconds["a process a run (--fresh) *"]
        print(f"| {what} | {used:.0f} | {of_fresh:.3f}, 1/{1 / of_fresh:.0f} |")
    print("\n* measured for one run of each batch size, times 18")


def scripts(folder: Path, sizes: Sequence[int] = SIZES) -> float:
    """PLAIN for each batch size."""
    splits = a9a_sized("")
    names = ("inputs", "targets", "test_inputs", "test_targets")
    arrays = dict(zip(names, (*splits["train"], *splits["test"]), strict=True))
    np.savez(folder / "data.npz", **arrays)
    script, weights = folder / "plain.py", folder / "weights.pt"
    script.write_text(PLAIN)
    seconds = 0.0
    for size in sizes:
        weights.unlink(missing_ok=True)
        command = [str(script), str(size), str(folder / "data.npz"), str(weights)]
        seconds += processor_seconds(command)
        assert weights.exists(), f"{script} has failed"
    return seconds


def grid(folder: Path, values: dict[str, str], *options: str) -> float:
    folder.mkdir()
    text = JOB.replace("FOLDER", str(folder / "results"))
    for word, value in values.items():
        text = text.replace(word, value)
    (folder / "job.yaml").write_text(text)
    command = ["submit_multiple.py", str(folder / "job.yaml"), "-s", "local", "--live", *options]
    return processor_seconds(command)


if __name__ == "__main__":
    main(sys.argv[1:])
