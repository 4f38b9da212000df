"""Small data sets in the files that real ones have, for tests of sources and of whole runs."""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
from scipy import sparse
from torchvision.datasets import CIFAR10

MNIST_SIZES = {"train": 30, "t10k": 12}


def idx(array: np.ndarray) -> bytes:
    """The IDX format of MNIST: magic number, dimensions, bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def mnist_files() -> dict[str, bytes]:
    rng, files = np.random.default_rng(0), {}
    for part, n in MNIST_SIZES.items():
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
    """CIFAR-10's pickles; torchvision gets their checksums."""
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


def table(n: int, d: int, *, fill: float = 1.0, seed: int = 0) -> np.ndarray:
    return sparse.random(n, d, fill, random_state=seed).toarray()


def seed_cache(data_dir: Path, name: str, inputs: np.ndarray, targets) -> None:
    """The files that libsvmdata 0.5 leaves: Fortran order or CSC, float64, labels as they were."""
    folder = data_dir / "libsvm"
    folder.mkdir(exist_ok=True)
    if np.count_nonzero(inputs) >= inputs.size / 2:
        np.save(folder / f"{name}_X.npy", np.asfortranarray(inputs))
    else:
        sparse.save_npz(folder / f"{name}_X.npz", sparse.csc_matrix(inputs))
    if sparse.issparse(targets):
        sparse.save_npz(folder / f"{name}_y.npz", targets)
    else:
        np.save(folder / f"{name}_y.npy", np.asarray(targets, float))
