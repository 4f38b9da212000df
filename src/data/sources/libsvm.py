"""libsvm/NAME: the data sets of the LIBSVM site, as libsvmdata offers them."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from torch import Tensor

from src.data.arrays import ArraySplit, csr_tensor, split_arrays
from src.data.slices import bases_used, check_bases
from src.data.sources import libsvm_files
from src.data.sources.fetch import alone, missing
from src.data.splits import Data
from src.support import ROOT, unknown_name


def load(
    name: str,
    splits_map: Mapping[str, str],
    *,
    data_dir: Path,
    download: bool = True,
    normalize: str | None = None,
    mirror: str | None = None,
) -> Data:
    """The data set from data_dir/libsvm, with rows of unit norm unless normalize says otherwise.

    Parts: `train` is NAME, `test` is NAME_test where the site has it. Labels
    become 0…C-1 in sorted order; one number of features holds for both parts.
    """
    check_name(name, splits_map, data_dir=data_dir)
    folder, names = _folder(data_dir), _names(name)
    used = bases_used(splits_map)
    parts: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {}
    layout = None
    for base in used:
        _ensure(folder, names[base], download=download, layout=layout, mirror=mirror)
        parts[base] = libsvm_files.read(folder, names[base])
        layout = parts[base][0]["layout"]  # test data lie in memory as training data do
    n_features = max(meta["n_features"] for meta, _ in parts.values())
    classes = np.unique(np.concatenate([meta["classes"] for meta, _ in parts.values()]))
    bases = {
        base: ArraySplit(_inputs(arrays, n_features), _targets(meta, arrays, classes))
        for base, (meta, arrays) in parts.items()
    }
    splits = split_arrays(bases, splits_map, normalize or "rows")
    labels = tuple(f"{label:g}" for label in classes)
    return Data(dict(splits), (n_features,), len(labels) or None, labels or None)


def check_name(name: str, splits_map: Mapping[str, str], *, data_dir: Path) -> None:
    """UserError for a data set or a part that neither data_dir nor the site has."""
    folder, names = _folder(data_dir), _names(name)
    used = bases_used(splits_map)
    if all(b in names and libsvm_files.is_current(folder, names[b]) for b in used):
        return
    from libsvmdata import supported

    if name not in supported:
        alike = [f"libsvm/{known}" for known in supported if known.startswith(name)]
        raise unknown_name("dataset", f"libsvm/{name}", alike or [f"libsvm/{s}" for s in supported])
    bases = [base for base, part in names.items() if part in supported]
    check_bases(splits_map, bases, f"libsvm/{name}")


def _folder(data_dir: Path) -> Path:
    return (data_dir / "libsvm").absolute()


def _names(name: str) -> dict[str, str]:
    return {"train": name, "test": f"{name}_test"}


def _ensure(
    folder: Path, name: str, *, download: bool, layout: str | None, mirror: str | None
) -> None:
    """See that the prepared arrays are there, fetching and preparing them where needed."""
    if libsvm_files.is_current(folder, name, layout):
        return
    if not download and not libsvm_files.source_files(folder, name):
        raise _missing(folder, name, "is missing and data_download is false")
    with alone(folder / f"{name}.lock", f"fetches or prepares libsvm/{name}"):
        if libsvm_files.is_current(folder, name, layout):
            return
        request = {"folder": str(folder), "name": name, "layout": layout, "mirror": mirror}
        if libsvm_files.source_files(folder, name):
            fault = _run({**request, "fetch": False})
            if fault is None:
                return
            fault = f"is broken ({fault})"
        else:
            fault = "is missing"
        if not download:
            raise _missing(folder, name, f"{fault} and data_download is false")
        logger.warning("libsvm/{} {}: fetching it into {}", name, fault, folder)
        failed = _run({**request, "fetch": True})
        if failed:
            raise _missing(folder, name, f"could not be fetched ({failed})")


def _missing(folder: Path, name: str, reason: str) -> Exception:
    files = f"{name}_X.npz (or .npy) and {name}_y.npy (or .npz)"
    return missing(f"libsvm/{name}", reason, folder, files)


def _run(request: dict[str, Any]) -> str | None:
    """Do libsvm_files.make in a process of its own; None, or why it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "src.data.sources.libsvm_files", json.dumps(request)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines() or [f"ended by {done.returncode}"]
    return lines[-1]


def _inputs(arrays: Mapping[str, np.ndarray], n_features: int) -> Tensor:
    """Dense (n, n_features) or CSR; on the memory of the arrays unless columns are added."""
    values = arrays["values"]
    if "columns" in arrays:
        rows, columns = torch.from_numpy(arrays["rows"]), torch.from_numpy(arrays["columns"])
        return csr_tensor(rows, columns, torch.from_numpy(values), n_features)
    if values.shape[1] < n_features:
        values = np.pad(values, ((0, 0), (0, n_features - values.shape[1])))
    return torch.from_numpy(values)


def _targets(
    meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], classes: np.ndarray
) -> Tensor:
    """Class numbers (n,) int64, reals (n,) float32, or zeros and ones (n, C) float32."""
    targets = arrays["targets"]
    if meta["task"] == "regression":
        return torch.from_numpy(targets)
    numbers = torch.from_numpy(np.searchsorted(classes, meta["classes"])[targets])
    if meta["task"] != "multilabel":
        return numbers
    labels_each = torch.from_numpy(np.diff(arrays["ends"]))
    example = torch.repeat_interleave(torch.arange(len(labels_each)), labels_each)
    hot = torch.zeros(len(labels_each), len(classes))
    hot[example, numbers] = 1.0
    return hot
