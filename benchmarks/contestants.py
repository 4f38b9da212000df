"""The same work done by a bare loop, by us, and by others.

Each contestant is a generator: every `next` trains `num_steps` optimizer steps of one
linear model (581,012 x 54 dense rows, 7 classes, Adam, poly_8 average, loss and accuracy
summed) and gives the seconds that took. What others do not do by themselves (the average,
the sums) is done in the place they offer for it; their logging, bars and checkpoints are off.
"""

import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from benchmarks.turns import Segments


def covtype_like() -> tuple[Tensor, Tensor]:
    """Inputs (581012, 54) float32 with rows of length 1, targets (581012,) int64."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(581_012, 54, generator=generator)
    hidden = torch.randn(54, 7, generator=generator)
    noise = torch.randn(581_012, 7, generator=generator)
    return F.normalize(inputs), (inputs @ hidden + 2 * noise).argmax(1)


class PlainAverage:
    """poly_8 as one would write it."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.t = deepcopy(model), 0
        self.pairs = list(self.model.parameters()), list(model.parameters())

    @torch.no_grad()
    def update(self) -> None:
        self.t += 1
        torch._foreach_lerp_(*self.pairs, 9 / (8 + self.t))


# ---- The bare loop -----------------------------------------------------------------------


def train_bare(
    forward: Callable[[Any], Tensor],
    batches: Iterator[tuple[Any, Tensor]],
    optimizer: torch.optim.Optimizer,
    num_steps: int,
    update_average: Callable[[], None] = lambda: None,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> Segments:
    """Forward, backward, step, sums on the device, average: nothing else."""
    device = optimizer.param_groups[0]["params"][0].device
    while True:
        started = perf_counter()
        total = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        for x, y in islice(batches, num_steps):
            outputs = forward(x)
            loss = F.cross_entropy(outputs, y)
            backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            update_average()
            total += loss.detach() * len(y)
            correct += (outputs.argmax(1) == y).sum()
        total.item(), correct.item()
        yield perf_counter() - started


def shuffled(num_examples: int, batch_size: int) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(num_examples).split(batch_size)


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)


def bare(batch_size: int, num_steps: int, folder: Path) -> Segments:
    """Tensors in memory, randperm, gather."""
    inputs, targets = covtype_like()
    batches = ((inputs[i], targets[i]) for i in shuffled(len(targets), batch_size))
    model = nn.Linear(54, 7)
    return train_bare(model, batches, adam(model), num_steps, PlainAverage(model).update)


def plain_loader(batch_size: int, num_steps: int, folder: Path) -> Segments:
    """The usual DataLoader(TensorDataset), which collates example by example."""
    model = nn.Linear(54, 7)
    batches = _endless(_loader(batch_size))
    return train_bare(model, batches, adam(model), num_steps, PlainAverage(model).update)


def _loader(batch_size: int) -> DataLoader:
    return DataLoader(TensorDataset(*covtype_like()), batch_size, shuffle=True)


def _endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


# ---- Ours --------------------------------------------------------------------------------


def our_run(batch_size: int, num_steps: int, folder: Path, **keys: Any) -> Iterator[Any]:
    """A normal run with its folder: a line every 10 steps, status.json, stats.csv an epoch."""
    from src.config import make_config
    from train import experiment_generator

    of_all = {
        "dataset": "libsvm/covtype.multiclass",
        "data_dir": str(folder / "data"),
        "data_splits_map": {"train": "train"},
        "model": "linear",
        "optim_alg": "adam",
        "base_lr": 1e-3,
        "averaging": "poly_8",
        "device": "cpu",
        "num_workers": 0,
        "train_length": 1000,
        "output_dir": str(folder / f"run-{os.getpid()}"),
    }
    run = {"batch_size": batch_size, "steps_per_epoch": num_steps}
    return experiment_generator(make_config(of_all | run | keys))


def ours(batch_size: int, num_steps: int, folder: Path, **keys: Any) -> Segments:
    generator = our_run(batch_size, num_steps, folder, **keys)
    next(generator)  # set-up and the first epoch
    while True:
        started = perf_counter()
        next(generator)
        yield perf_counter() - started


# ---- Others ------------------------------------------------------------------------------


def accelerate(batch_size: int, num_steps: int, folder: Path) -> Segments:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    plain = nn.Linear(54, 7)
    model, optimizer, loader = accelerator.prepare(plain, adam(plain), _loader(batch_size))
    average = PlainAverage(plain)
    batches = _endless(loader)
    return train_bare(model, batches, optimizer, num_steps, average.update, accelerator.backward)


def lightning_module(net: nn.Module, optimizer: Callable[..., Any], after_step: Any) -> Any:
    """What a user would write. Its `seconds` are those of the last epoch."""
    import logging
    import warnings

    import lightning as L

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            self.total, self.correct = 0, 0
            self.seconds = 0.0

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            x, y = batch
            outputs = self.net(x)
            loss = F.cross_entropy(outputs, y)
            self.total += loss.detach() * len(y)
            self.correct += (outputs.argmax(1) == y).sum()
            return loss

        def on_train_batch_end(self, *_: Any) -> None:
            after_step()

        def on_train_epoch_start(self) -> None:
            self.started = perf_counter()

        def on_train_epoch_end(self) -> None:
            self.seconds = perf_counter() - self.started

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer(self.net)

    return Module()


def lightning(batch_size: int, num_steps: int, folder: Path) -> Segments:
    import lightning as L

    net, loader = nn.Linear(54, 7), _loader(batch_size)
    module = lightning_module(net, adam, PlainAverage(net).update)
    steps = min(num_steps, len(loader))
    while True:
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, loader)
        yield module.seconds * num_steps / steps


class CountingModel(nn.Module):
    """What Hugging Face's Trainer wants: outputs with a loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.total = torch.zeros((), dtype=torch.float64)
        self.correct = torch.zeros((), dtype=torch.int64)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        outputs = self.net(x)
        loss = F.cross_entropy(outputs, y)
        self.total += loss.detach() * len(y)
        self.correct += (outputs.argmax(1) == y).sum()
        return {"loss": loss, "logits": outputs}


def hf_collate(examples: list[tuple[Tensor, Any]]) -> dict[str, Tensor]:
    x, y = default_collate(examples)
    return {"x": x, "y": y}


def hf_trainer(batch_size: int, num_steps: int, folder: Path) -> Segments:
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()
    data = TensorDataset(*covtype_like())

    class Averaging(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started = perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            average.update()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = perf_counter() - self.started

    model, callback = CountingModel(nn.Linear(54, 7)), Averaging()
    average = PlainAverage(model.net)
    arguments = TrainingArguments(
        output_dir=str(folder / "hf"),
        use_cpu=True,
        per_device_train_batch_size=batch_size,
        max_steps=num_steps,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        max_grad_norm=0,
        optim="adamw_torch_fused",
        remove_unused_columns=False,
    )
    while True:
        trainer = Trainer(
            model, arguments, train_dataset=data, data_collator=hf_collate, callbacks=[callback]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        yield callback.seconds


DENSE: dict[str, Callable[..., Segments]] = {
    "bare loop": bare,
    "ours": ours,
    "DataLoader loop": plain_loader,
    "Accelerate": accelerate,
    "Lightning": lightning,
    "HF Trainer": hf_trainer,
}


# ---- An evaluation pass ------------------------------------------------------------------


def bare_evaluation(batch_size: int, num_steps: int, folder: Path) -> Segments:
    inputs, targets = covtype_like()
    model = nn.Linear(54, 7).eval()
    while True:
        started = perf_counter()
        total, correct = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
        with torch.no_grad():
            for start in range(0, len(targets), batch_size):
                x, y = inputs[start : start + batch_size], targets[start : start + batch_size]
                outputs = model(x)
                total += F.cross_entropy(outputs, y, reduction="sum")
                correct += (outputs.argmax(1) == y).sum()
        total.item(), correct.item()
        yield perf_counter() - started


def our_evaluation(batch_size: int, num_steps: int, folder: Path) -> Segments:
    """What stats.csv says of the time of a whole test split."""
    from src.config import make_config
    from train import experiment_generator

    keys = {
        "dataset": "libsvm/covtype.multiclass",
        "data_dir": str(folder / "data"),
        "data_splits_map": {"train": "train", "test": "train"},
        "model": "linear",
        "eval_batch_size": batch_size,
        "device": "cpu",
        "steps_per_epoch": 1,
        "train_length": 1000,
        "output_dir": str(folder / f"run-{os.getpid()}"),
    }
    for stats, _ in experiment_generator(make_config(keys)):
        yield stats["test/last/time"].iloc[-1]


EVALUATION = {"bare loop": bare_evaluation, "ours": our_evaluation}


# ---- Sparse rows -------------------------------------------------------------------------


def bare_sparse(batch_size: int, num_steps: int, folder: Path) -> Segments:
    """CSR arrays in memory, rows gathered, and the product as a bag of embeddings."""
    from src.config import make_config
    from src.data import build_data

    keys = {"dataset": "libsvm/rcv1.binary", "data_dir": str(folder / "data")}
    data = build_data(make_config(keys | {"data_splits_map": {"train": "train"}}), None)
    inputs, targets = data.splits["train"].inputs, data.splits["train"].targets
    crow, columns, values = inputs.crow_indices(), inputs.col_indices(), inputs.values()
    weight = nn.Parameter(torch.zeros(47_236, 2))

    def rows(indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        starts = crow[indices]
        lengths = crow[indices + 1] - starts
        offsets = lengths.cumsum(0, dtype=lengths.dtype) - lengths
        positions = torch.repeat_interleave(starts - offsets, lengths)
        positions += torch.arange(len(positions), dtype=positions.dtype)
        return columns[positions], offsets, values[positions]

    def forward(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        entries, offsets, filled = batch
        return F.embedding_bag(entries, weight, offsets, mode="sum", per_sample_weights=filled)

    batches = ((rows(i), targets[i]) for i in shuffled(len(targets), batch_size))
    optimizer = torch.optim.Adam([weight], lr=1e-3, fused=True)
    return train_bare(forward, batches, optimizer, num_steps)


def our_sparse(batch_size: int, num_steps: int, folder: Path) -> Segments:
    keys = {"dataset": "libsvm/rcv1.binary", "model": "linear/no_bias", "averaging": None}
    return ours(batch_size, num_steps, folder, **keys)


SPARSE = {"bare loop": bare_sparse, "ours": our_sparse}


def modules_alone(batch_size: int, num_steps: int, folder: Path) -> Segments:
    """A run whose data weigh nothing: its memory is that of the imported modules."""
    return ours(batch_size, num_steps, folder, dataset="sklearn/iris", data_dir="data")


# ---- Images ------------------------------------------------------------------------------


def bare_wrn(batch_size: int, num_steps: int, folder: Path) -> Segments:
    """WRN-16-4 on random 32x32 images that lie in memory."""
    from src.models.tiny import build

    inputs, targets = torch.randn(512, 3, 32, 32), torch.randint(0, 10, (512,))
    model, _ = build("wrn_16_4", (3, 32, 32), 10)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True
    )
    batches = ((inputs[i], targets[i]) for i in shuffled(512, batch_size))
    return train_bare(model, batches, optimizer, num_steps)


def our_wrn(batch_size: int, num_steps: int, folder: Path) -> Segments:
    """The same network on PNG files in folders, read while training."""
    keys = {
        "dataset": f"timm/folder/{folder / 'images'}",
        "model": "tiny/wrn_16_4",
        "optim_alg": "sgd",
        "base_lr": 0.01,
        "averaging": None,
    }
    return ours(batch_size, num_steps, folder, **keys)


IMAGES = {"bare loop": bare_wrn, "ours": our_wrn}


# ---- Metrics -----------------------------------------------------------------------------


def mnist_like(data_dir: Path | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(10_000, 1, 28, 28, generator=generator)
    return {"train": (inputs, torch.randint(10, (10_000,), generator=generator))}


def bare_lenet(batch_size: int, num_steps: int, folder: Path) -> Segments:
    from src.models.tiny import build

    inputs, targets = mnist_like()["train"]
    model, _ = build("lenet", (1, 28, 28), 10)
    batches = ((inputs[i], targets[i]) for i in shuffled(len(targets), batch_size))
    return train_bare(model, batches, adam(model), num_steps)


def our_lenet(batch_size: int, num_steps: int, folder: Path) -> Segments:
    keys = {"dataset": "benchmarks.contestants:mnist_like", "model": "tiny/lenet"}
    return ours(batch_size, num_steps, folder, averaging=None, **keys)


def our_lenet_with_metrics(batch_size: int, num_steps: int, folder: Path) -> Segments:
    """Each step adds 20 numbers that it has on the device."""
    import train

    step = train.train_step
    values = {f"value_{number}": torch.rand(()) for number in range(20)}

    def with_metrics(run: Any, learner: Any, inputs: Any, targets: Tensor, metrics: Any) -> None:
        step(run, learner, inputs, targets, metrics)
        metrics.add(**values)

    train.train_step = with_metrics
    return our_lenet(batch_size, num_steps, folder)


METRICS = {
    "bare loop": bare_lenet,
    "ours": our_lenet,
    "ours, 20 metrics more": our_lenet_with_metrics,
}
