"""Trainers on one folder of small PNG files: padded by 4, cropped, flipped, normalised.

All have the same network, SGD, precision and number of worker processes, which stay over the
passes; each sums losses and counts correct predictions. The trainers that keep control until
they are done train in a thread, which waits between the segments.

timm's training script is no part of its package: `timm_script` puts together what that script
does with its defaults where there is no GPU: create_dataset, create_loader with its prefetcher
(which collates bytes and normalises a batch at once) or, by --no-prefetcher, without it,
ClassificationTask in autocast, a plain backward (it scales losses in float16 alone), and its
meters, of which that of the loss reads it in every step.
"""

from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Semaphore, Thread
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.contestants import (
    CountingModel,
    _endless,
    hf_collate,
    lightning_module,
    train_bare,
)
from benchmarks.settings import MEAN, STD, Work, forward_of, images_of, network, ours, sgd
from benchmarks.turns import Segments

PADDING, FLIP = 4, 0.5


def augmented_images(work: Work, folder: Path) -> Dataset:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose, Normalize, ToTensor

    steps = [*_augmentation(work), ToTensor(), Normalize(MEAN, STD)]
    return ImageFolder(str(images_of(work, folder) / "train"), Compose(steps))


def _augmentation(work: Work) -> list[Any]:
    from torchvision.transforms import RandomCrop, RandomHorizontalFlip

    return [RandomCrop(work.side, padding=PADDING), RandomHorizontalFlip(FLIP)]


def loader(work: Work, folder: Path) -> DataLoader:
    return DataLoader(
        augmented_images(work, folder),
        work.batch_size,
        shuffle=True,
        num_workers=work.num_workers,
        persistent_workers=work.num_workers > 0,
    )


def laps(fit: Callable[[Callable[[], None]], None], num_steps: int) -> Segments:
    """Seconds of every num_steps steps. fit(after_step): trains without an end and calls
    after_step() after each step."""
    begins, ended = Semaphore(0), SimpleQueue[BaseException | None]()
    steps = 0

    def after_step() -> None:
        nonlocal steps
        steps += 1
        if steps % num_steps == 0:
            ended.put(None)
            begins.acquire()

    def train() -> None:
        begins.acquire()
        try:
            fit(after_step)
        except BaseException as error:  # else the one who waits would wait for ever
            ended.put(error)

    Thread(target=train, daemon=True).start()
    while True:
        started = perf_counter()
        begins.release()
        if error := ended.get():
            raise error
        yield perf_counter() - started


# ---- The contestants ---------------------------------------------------------------------


def data_loader(work: Work, folder: Path) -> Segments:
    """A plain PyTorch loop over a DataLoader with torchvision's transforms."""
    model = network(work)
    batches = _endless(loader(work, folder))
    return train_bare(forward_of(model, work), batches, sgd(model), work.num_steps)


def ours_read(work: Work, folder: Path, *, is_cached: bool = False) -> Segments:
    augmentation = {"aug_pad_crop": PADDING, "aug_hflip": FLIP}
    return ours(work, folder, data_on_device=is_cached, **augmentation)


def ours_cached(work: Work, folder: Path) -> Segments:
    return ours_read(work, folder, is_cached=True)


def accelerate(work: Work, folder: Path) -> Segments:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if _is_bf16(work) else "no")
    plain = network(work)
    model, optimizer, batches = accelerator.prepare(plain, sgd(plain), loader(work, folder))
    steps = work.num_steps
    return train_bare(model, _endless(batches), optimizer, steps, backward=accelerator.backward)


def lightning(work: Work, folder: Path) -> Segments:
    import lightning as L

    def fit(after_step: Callable[[], None]) -> None:
        trainer = L.Trainer(
            accelerator="cpu",
            precision="bf16-mixed" if _is_bf16(work) else "32-true",
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(lightning_module(network(work), sgd, after_step), loader(work, folder))

    return laps(fit, work.num_steps)


def hf_trainer(work: Work, folder: Path) -> Segments:
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    logging.set_verbosity_error()

    def fit(after_step: Callable[[], None]) -> None:
        class Steps(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                after_step()

        arguments = TrainingArguments(
            output_dir=str(folder / "hf"),
            use_cpu=True,
            bf16=_is_bf16(work),
            per_device_train_batch_size=work.batch_size,
            dataloader_num_workers=work.num_workers,
            dataloader_persistent_workers=work.num_workers > 0,
            dataloader_pin_memory=False,
            max_steps=10**6,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            max_grad_norm=0,
            remove_unused_columns=False,
        )
        model = CountingModel(network(work))
        optimizer = sgd(model)
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        trainer = Trainer(
            model,
            arguments,
            train_dataset=augmented_images(work, folder),
            data_collator=hf_collate,
            callbacks=[Steps()],
            optimizers=(optimizer, constant),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()

    return laps(fit, work.num_steps)


def timm_script(work: Work, folder: Path, *, is_prefetched: bool = True) -> Segments:
    from timm.data import create_dataset, create_loader
    from timm.data.transforms import ToNumpy
    from timm.task import ClassificationTask
    from timm.utils import AverageMeter
    from torchvision.transforms import Compose, Normalize, ToTensor

    dataset = create_dataset(
        "",
        str(images_of(work, folder)),
        split="train",
        is_training=True,
        batch_size=work.batch_size,
    )
    batches = create_loader(
        dataset,
        input_size=(3, work.side, work.side),
        batch_size=work.batch_size,
        is_training=True,
        use_prefetcher=is_prefetched,
        num_workers=work.num_workers,
        persistent_workers=work.num_workers > 0,
        device=torch.device("cpu"),
        mean=MEAN,
        std=STD,
    )
    last = [ToNumpy()] if is_prefetched else [ToTensor(), Normalize(MEAN, STD)]
    dataset.transform = Compose([*_augmentation(work), *last])  # its own have no such crop
    model = network(work)
    criterion, cpu = nn.CrossEntropyLoss(), torch.device("cpu")
    task = ClassificationTask(model, criterion, device=cpu, verbose=False)
    optimizer = sgd(model)
    waiting, stepping, losses = AverageMeter(), AverageMeter(), AverageMeter()

    def fit(after_step: Callable[[], None]) -> None:
        correct, loaded_from = torch.zeros((), dtype=torch.int64), perf_counter()
        for inputs, targets in _endless(batches):
            waiting.update(perf_counter() - loaded_from)
            started = perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=_is_bf16(work)):
                found = task(inputs, targets)
            found["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.update(found["loss"].item(), len(targets))
            correct += (found["output"].argmax(1) == targets).sum()
            stepping.update(perf_counter() - started)
            after_step()
            loaded_from = perf_counter()

    return laps(fit, work.num_steps)


def timm_without_prefetcher(work: Work, folder: Path) -> Segments:
    return timm_script(work, folder, is_prefetched=False)


def _is_bf16(work: Work) -> bool:
    return work.precision == "bf16"


TRAINERS: dict[str, Callable[[Work, Path], Segments]] = {
    "DataLoader loop": data_loader,
    "ours": ours_read,
    "ours, data_on_device": ours_cached,
    "timm": timm_script,
    "timm, no prefetcher": timm_without_prefetcher,
    "Accelerate": accelerate,
    "Lightning": lightning,
    "HF Trainer": hf_trainer,
}
