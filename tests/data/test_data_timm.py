"""timm/torch/NAME and timm/folder/PATH on files of the real formats that are written here."""

import gzip
import hashlib
import pickle
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

from src.data import timm
from src.data.splits import Preprocessing
from src.names import UserError

BOTH = {"train": "train", "test": "test"}
SIZES = {"train": 30, "t10k": 12}


def idx(array: np.ndarray) -> bytes:
    """The IDX format of MNIST: magic number, dimensions, bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def mnist_files() -> dict[str, bytes]:
    rng, files = np.random.default_rng(0), {}
    for part, n in SIZES.items():
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx((np.arange(n) % 10).astype(np.uint8))
    return files


def write_mnist(data_dir: Path, name: str = "FashionMNIST") -> Path:
    raw = data_dir / name / "raw"
    raw.mkdir(parents=True)
    for file, content in mnist_files().items():
        (raw / file).write_bytes(content)
    return raw


def write_cifar(data_dir: Path, monkeypatch) -> None:
    """CIFAR-10's pickles; torchvision is told their checksums."""
    folder, sums, rng = data_dir / "cifar-10-batches-py", {}, np.random.default_rng(0)
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
    for name in names:
        labels = rng.permutation(10).tolist()
        content = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": labels}
        if name == "batches.meta":
            content = {"label_names": [f"class{i}" for i in range(10)]}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[n, sums[n]] for n in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], sums[names[5]]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[names[6]]})


def load(name: str, data_dir: Path, splits_map=BOTH, **kwargs):
    return timm.load(name, splits_map, data_dir=data_dir, **{"download": False, **kwargs})


def test_cifar10_parts_and_slices_are_those_of_the_files(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch)
    splits_map = {"train": "train[:90%]", "val": "train[90%:]+test[:2]", "test": "test"}
    data = load("torch/cifar10", tmp_path, splits_map)
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 45,
        "val": 7,
        "test": 10,
    }
    assert (data.input_shape, data.n_classes) == ((3, 32, 32), 10)
    train, test = CIFAR10(str(tmp_path), train=True), CIFAR10(str(tmp_path), train=False)
    for ours, (image, label) in [
        (data.splits["train"].dataset[44], train[44]),
        (data.splits["val"].dataset[4], train[49]),
        (data.splits["val"].dataset[6], test[1]),
    ]:
        assert ours[0].tobytes() == image.tobytes()
        assert ours[1] == label
        assert type(ours[1]) is int
    inputs = data.splits["test"].transform(test[0][0])
    assert (inputs.shape, inputs.dtype) == ((3, 32, 32), torch.float32)


@pytest.mark.parametrize("base", ["val", "validation", "Train", "eval"])
def test_only_parts_that_exist_are_taken(tmp_path, base):
    """timm gives the test set for each of these."""
    write_mnist(tmp_path)
    with pytest.raises(
        UserError, match=f"fashion_mnist has no '{base}', there is: 'train', 'test'"
    ):
        load("torch/fashion_mnist", tmp_path, {"train": base})


@pytest.mark.parametrize(
    ("looks", "shape"),
    [
        (Preprocessing(), (1, 28, 28)),
        (Preprocessing((3, 32, 32), (0.5,), (0.5,)), (3, 32, 32)),
        (Preprocessing(mean=(0.0,), std=(1.0,)), (1, 28, 28)),
    ],
)
def test_images_come_as_the_model_wants_them(tmp_path, looks, shape):
    write_mnist(tmp_path)
    data = load("torch/fashion_mnist", tmp_path, looks=looks)
    assert data.input_shape == shape
    split = data.splits["train"]
    inputs = split.transform(split.dataset[0][0])
    assert inputs.shape == shape
    mean, std = (looks.mean or (0.2860,))[0], (looks.std or (0.3530,))[0]
    if shape == (1, 28, 28):
        pixels = FashionMNIST(str(tmp_path)).data[:1] / 255
        torch.testing.assert_close(inputs, (pixels - mean) / std)
    else:
        assert -1 <= inputs.min() < inputs.max() <= 1


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "all_missing"])
def test_missing_or_broken_files_are_named_or_fetched(
    tmp_path, site, monkeypatch, download, damage
):
    """torchvision by itself fetches missing files alone."""
    if damage != "all_missing":
        file = write_mnist(tmp_path, "MNIST") / "t10k-images-idx3-ubyte"
        content = file.read_bytes()[:-9] if damage == "truncated" else b""
        file.unlink() if damage == "missing" else file.write_bytes(content)
    packed = {f"{name}.gz": gzip.compress(data) for name, data in mnist_files().items()}
    site.files = {f"/{name}": content for name, content in packed.items()}
    sums = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
    monkeypatch.setattr(MNIST, "mirrors", [f"{site.address}/"])
    monkeypatch.setattr(MNIST, "resources", sums)
    if download:
        data = load("torch/mnist", tmp_path, download=True)
        assert [len(split) for split in data.splits.values()] == list(SIZES.values())
    else:
        with pytest.raises(
            UserError, match=r"timm/torch/mnist cannot be read.*MNIST/raw"
        ) as caught:
            load("torch/mnist", tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert site.requests == []


@pytest.mark.parametrize("fault", ["refused", "silent"])
def test_a_dead_network_is_given_up_soon(tmp_path, site, monkeypatch, fault):
    monkeypatch.setattr("src.data.fetch.NO_PROGRESS_SECONDS", 0.5)
    monkeypatch.setattr(MNIST, "mirrors", [f"{site.address}/"])
    monkeypatch.setattr(MNIST, "resources", [("train-images-idx3-ubyte.gz", "0")])
    site.files["/train-images-idx3-ubyte.gz"] = bytes(1000)
    site.stalls.set()
    if fault == "refused":
        site.shutdown()
        site.server_close()
    start = time.monotonic()
    with pytest.raises(UserError, match="timm/torch/mnist could not be fetched") as caught:
        load("torch/mnist", tmp_path, download=True)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 10


def write_folder(root: Path, classes="ab", folders=("train", "val"), sizes=((20, 30), (40, 20))):
    for part in folders:
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(10):
                image = Image.new("RGB", sizes[i % len(sizes)], (50 * number, 0, i))
                image.save(root / part / name / f"{i}.png")


@pytest.mark.parametrize("second", ["val", "validation"])
def test_folders_of_images(tmp_path, second):
    write_folder(tmp_path / "pets", folders=("train", second))
    looks = Preprocessing((3, 24, 24), mean=(0.0,), std=(1.0,))
    for place in ("pets", str(tmp_path / "pets")):
        splits_map = {"train": "train[:50%]", "rest": "train[50%:]", "val": "val"}
        data = load(f"folder/{place}", tmp_path, splits_map, looks=looks)
        assert (data.n_classes, data.input_shape) == (2, (3, 24, 24))
        seen = []
        for split in (data.splits["train"], data.splits["rest"]):
            assert len(split) == 10
            for image, label in (split.dataset[i] for i in range(10)):
                inputs = split.transform(image)
                assert inputs.shape == (3, 24, 24)
                assert round(float(inputs[0].mean()) * 255) == 50 * label
                seen.append((label, image.getpixel((0, 0))[2]))
        assert sorted(seen) == [(label, i) for label in (0, 1) for i in range(10)]
        assert {label for label, _ in seen[:10]} == {0, 1}  # a slice is not the first class


def test_folders_whose_images_differ_need_a_shape(tmp_path):
    write_folder(tmp_path / "pets")
    write_folder(tmp_path / "same", sizes=((30, 20),))
    with pytest.raises(UserError, match=r"model_input_shape: .*timm/folder/pets differ in size"):
        load("folder/pets", tmp_path, {"train": "train"})
    assert load("folder/same", tmp_path, {"train": "train"}).input_shape == (3, 20, 30)


def test_bad_folders_are_explained(tmp_path):
    write_folder(tmp_path / "pets", folders=("train",), sizes=((30, 20),))
    write_folder(tmp_path / "pets", folders=("test",), classes="abc", sizes=((30, 20),))
    with pytest.raises(UserError, match=r"classes of train and test differ by \['c'\]"):
        load("folder/pets", tmp_path)
    with pytest.raises(UserError, match=r"has no 'val', there is: 'train', 'test'"):
        load("folder/pets", tmp_path, {"train": "train", "val": "val"})
    with pytest.raises(UserError, match=r"timm/folder/dogs has no folder train.*dogs"):
        load("folder/dogs", tmp_path)
    (tmp_path / "pets" / "train" / "empty").mkdir()
    with pytest.raises(UserError, match=r"cannot be read .*empty"):
        load("folder/pets", tmp_path, {"train": "train"})


@pytest.mark.parametrize("name", ["torch/cifar", "torch/image_folder", "tfds/cifar10", "cifar10"])
def test_unknown_names_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="dataset: unknown"):
        load(name, tmp_path)
