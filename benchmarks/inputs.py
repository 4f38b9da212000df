"""Images per second of each family beside timm's own loader, and texts beside a plain one.

    python benchmarks/inputs.py                  all of it, about ten minutes
    python benchmarks/inputs.py folder texts     some of it

The same files, the same work (a random crop and a flip, as timm trains by default), batches of
100 on the CPU. Ours and the other take turns, a fresh pass each; a ratio is the median over the
turns of images per second after the first batch. The files are 400 photographs of 500 x 400
pixels as JPEG, cut out of the two that come with scikit-learn, and 10,000 images of 28 x 28.
"""

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}

import argparse
import datetime
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stdout
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

TURNS = 5
BATCH = 100
WORKERS = (0, 1, 2)
PHOTOS = 400
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = Callable[[int], Iterator[Any]]  # number of workers -> one pass and more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", help=f"some of {', '.join(TABLES)}")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:  # a process of its own, as TensorFlow slows down all that is beside it
        table, folder = options.one
        return TABLES[table](Path(folder))
    from benchmarks.bench import machine

    print(f"{datetime.date.today()}, {machine()}, {os.cpu_count()} cores\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder))
        for table in options.tables or TABLES:
            command = [sys.executable, __file__, "--one", table, folder]
            subprocess.run(command, check=True)


# ---- Taking turns ------------------------------------------------------------------------


def compare(title: str, ours: Batches, theirs: Batches, batches: int, workers=WORKERS) -> None:
    """A line for each number of workers. batches: that are timed in a turn."""
    print(f"{title}\n")
    print("| workers | ours, per second | theirs | ratio | first batch, s | theirs, s |")
    print("|--:|--:|--:|--:|--:|--:|")
    for number in workers:
        seconds: dict[Batches, list[tuple[float, float]]] = {ours: [], theirs: []}
        for turn in range(TURNS):
            for contestant in (ours, theirs)[:: 1 if turn % 2 else -1]:
                seconds[contestant].append(turn_of(contestant, number, batches))
        rates = {c: [rate for _, rate in found] for c, found in seconds.items()}
        firsts = [statistics.median(first for first, _ in seconds[c]) for c in (ours, theirs)]
        ratio = statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True))
        medians = [statistics.median(rates[c]) for c in (ours, theirs)]
        print(
            f"| {number} | {medians[0]:,.0f} | {medians[1]:,.0f} | {ratio:.2f} "
            f"| {firsts[0]:.2f} | {firsts[1]:.2f} |",
            flush=True,
        )
    print(flush=True)


def turn_of(contestant: Batches, workers: int, batches: int) -> tuple[float, float]:
    """Seconds to the first batch, and examples (of texts, tokens) per second after it."""
    started = perf_counter()
    with closing(contestant(workers)) as passing:  # type: ignore[type-var]
        next(passing)
        first = perf_counter()
        amount = sum(islice(passing, batches))
        return first - started, amount / (perf_counter() - first)


# ---- Images ------------------------------------------------------------------------------


def make_photos(folder: Path) -> None:
    """folder/photos/train/CLASS/N.jpg, and the same in folder/photos_tar/train.tar."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    draw = np.random.default_rng(0)
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    for number in range(PHOTOS):
        width = int(draw.integers(300, 640))
        height = width * 4 // 5
        image = sources[number % 2]
        left = int(draw.integers(0, image.width - width + 1))
        upper = int(draw.integers(0, max(image.height - height, 0) + 1))
        part = image.crop((left, upper, left + width, upper + height)).resize((500, 400))
        path = folder / "photos" / "train" / ("temple", "flower")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.save(path, quality=90)
    (folder / "photos_tar").mkdir()
    with tarfile.open(folder / "photos_tar" / "train.tar", "w") as tar:
        for path in sorted((folder / "photos" / "train").rglob("*.jpg")):
            tar.add(path, arcname=path.relative_to(folder / "photos" / "train"))


def our_images(dataset: str, folder: Path, shape: list[int]) -> Batches:
    import torch

    from src.config import make_config
    from src.data.registry import build_data
    from src.data.splits import LoaderConfig

    keys = {"dataset": dataset, "data_dir": str(folder), "data_splits_map": {"train": "train"}}
    keys |= {"aug_crop_scale": [0.08, 1.0], "aug_hflip": 0.5, "model_input_shape": shape}
    split = build_data(make_config(keys), None).splits["train"]

    def batches(workers: int) -> Iterator[int]:
        loading = LoaderConfig(BATCH, torch.device("cpu"), workers)
        steps = len(split) // BATCH
        with closing(split.training_batches(loading, seed=0, steps_per_pass=steps)) as passing:
            yield from (len(targets) for _, targets in passing)

    return batches


def timms_images(name: str, root: Path, shape: list[int], **options: Any) -> Batches:
    """timm's loader as its training script makes it, without a GPU."""
    import torch
    from timm.data import create_dataset, create_loader

    dataset = create_dataset(
        name, str(root), is_training=True, batch_size=BATCH, **{"split": "train"} | options
    )

    def batches(workers: int) -> Iterator[int]:
        loader = create_loader(
            dataset,
            input_size=tuple(shape),
            batch_size=BATCH,
            is_training=True,
            num_workers=workers,
            persistent_workers=False,
            device=torch.device("cpu"),
            color_jitter=None,
            interpolation="bilinear",
            mean=MEAN[: shape[0]],
            std=STD[: shape[0]],
        )
        while True:
            for _, targets in loader:
                yield len(targets)

    return batches


def folder_table(folder: Path) -> None:
    ours = our_images("timm/folder/photos", folder, [3, 224, 224])
    theirs = timms_images("", folder / "photos", [3, 224, 224])
    compare("timm/folder, 224 pixels, images per second", ours, theirs, 10)


def make_small_images(folder: Path, number: int, side: int = 32) -> None:
    """folder/CLASS/N.png of ten classes, about as smooth as photographs are."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for n in range(number):
        path = folder / str(n % 10) / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(draw.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8))
        image.resize((side, side), Image.Resampling.BICUBIC).save(path)


def cached_table(folder: Path) -> None:
    """5,000 PNG files of 32 x 32 pixels, padded, cropped and flipped; both are ours."""
    import torch

    from src.config import make_config
    from src.data.registry import build_data, build_loader_config
    from src.data.splits import Split

    cpu = torch.device("cpu")
    make_small_images(folder / "small" / "train", 5000)
    keys = {"dataset": "timm/folder/small", "data_dir": str(folder), "aug_hflip": 0.5}
    keys |= {"data_splits_map": {"train": "train"}, "aug_pad_crop": 4}
    config = make_config(keys | {"batch_size": BATCH})
    data = build_data(config, None)
    split = data.splits["train"]
    cached = data.to_device(cpu, is_cached=True, num_workers=0)["train"]

    def batches(source: Split, workers: int) -> Iterator[int]:
        loading = replace(build_loader_config(config, data, cpu), num_workers=workers)
        with closing(source.training_batches(loading, seed=0, steps_per_pass=50)) as passing:
            yield from (len(targets) for _, targets in passing)

    title = "data_on_device, 32 pixels, images per second (theirs: ours, read one at a time)"
    compare(title, partial(batches, cached), partial(batches, split), 95)


def tar_table(folder: Path) -> None:
    ours = our_images("timm/tar/photos_tar", folder, [3, 224, 224])
    theirs = timms_images("", folder / "photos_tar" / "train.tar", [3, 224, 224])
    compare("timm/tar, 224 pixels, images per second", ours, theirs, 10)


def torch_table(folder: Path) -> None:
    raw, draw = folder / "KMNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for part in "train", "t10k":
        pixels = draw.integers(0, 256, (10_000, 28, 28), dtype=np.uint8)
        sizes = b"".join(n.to_bytes(4) for n in pixels.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + pixels.tobytes())
        labels = (np.arange(10_000) % 10).astype(np.uint8)
        head = b"\0\0\x08\x01" + (10_000).to_bytes(4)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    ours = our_images("timm/torch/kmnist", folder, [1, 28, 28])
    theirs = timms_images("torch/kmnist", folder, [1, 28, 28])
    compare("timm/torch, 28 pixels, images per second", ours, theirs, 90)


BUILDER = """
import tensorflow_datasets as tfds

class Photos(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["flower", "temple"])
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label}),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for path in sorted(PHOTOS.glob("*/*.jpg")):
            yield path.stem, {"image": str(path), "label": path.parent.name}
"""


def tfds_table(folder: Path) -> None:
    """Both of the forms in which TFDS prepares data; timm reads the second, by TensorFlow."""
    import tensorflow_datasets as tfds
    import timm.data  # noqa: F401 - before TensorFlow, whose LLVM does not bear another after it

    tfds.disable_progress_bar()

    package = folder / "modules" / "photos_builder"
    package.mkdir(parents=True)
    text = f"from pathlib import Path\nPHOTOS = Path({str(folder / 'photos' / 'train')!r})\n"
    (package / "__init__.py").write_text(text + BUILDER)
    sys.path.insert(0, str(folder / "modules"))
    from photos_builder import Photos

    for form in "array_record", "tfrecord":
        with redirect_stdout(sys.stderr):
            Photos(data_dir=folder / form, file_format=form).download_and_prepare()
    theirs = timms_images("tfds/photos", folder / "tfrecord", [3, 224, 224])
    for form in "tfrecord", "array_record":
        ours = our_images("tfds/photos", folder / form, [3, 224, 224])
        title = f"tfds, {form}, 224 pixels, images per second (timm's by TensorFlow's threads)"
        compare(title, ours, theirs, 10)


def hf_table(folder: Path) -> None:
    ours = our_images("hf/imagefolder:photos", folder, [3, 224, 224])
    theirs = timms_images(f"hfds/{folder / 'photos'}", folder / "cache", [3, 224, 224])
    compare("hf/imagefolder, 224 pixels, images per second", ours, theirs, 10)


def texts_table(folder: Path) -> None:
    """20,000 texts of 5 to 128 tokens; theirs is a DataLoader that pads each batch."""
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from torch.utils.data import DataLoader

    from src.data.splits import LoaderConfig
    from src.data.text import TextSplit

    lengths = torch.randint(5, 129, (20_000,), generator=torch.Generator().manual_seed(0))
    ends = lengths.cumsum(0)
    tokens = torch.randint(0, 30_000, (int(ends[-1]),), dtype=torch.int32)
    split = TextSplit(tokens, ends - lengths, ends, torch.zeros(20_000, dtype=torch.int64))
    steps = len(split) // BATCH

    def ours(workers: int) -> Iterator[int]:
        loading = LoaderConfig(BATCH, torch.device("cpu"), workers)
        for inputs, _ in split.training_batches(loading, seed=0, steps_per_pass=steps):
            yield int((inputs >= 0).sum())

    texts = [(text.long(), 0) for text in tokens.split(lengths.tolist())]

    def padded(batch: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = pad_sequence([text for text, _ in batch], batch_first=True, padding_value=-1)
        return inputs, torch.tensor([target for _, target in batch])

    def theirs(workers: int) -> Iterator[int]:
        loader = DataLoader(texts, BATCH, shuffle=True, num_workers=workers, collate_fn=padded)  # type: ignore[arg-type]
        while True:
            for inputs, _ in loader:
                yield int((inputs >= 0).sum())

    compare("texts, tokens per second (theirs a plain loop)", ours, theirs, 190, workers=(0,))


TABLES: dict[str, Callable[[Path], None]] = {
    "torch": torch_table,
    "folder": folder_table,
    "cached": cached_table,
    "tar": tar_table,
    "tfds": tfds_table,
    "hf": hf_table,
    "texts": texts_table,
}

if __name__ == "__main__":
    main()
