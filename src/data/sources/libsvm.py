"""libsvm/NAME: the data sets of the LIBSVM site, as the package libsvmdata offers them.

DATA_DIR/libsvm/NAME_X.npz|npy and NAME_y.npy|npz are libsvmdata's cache: float64, by columns.
DATA_DIR/libsvm/prepared/NAME/ is made from it once: float32, by rows. A run reads this alone,
without libsvmdata and scipy (which take 1.4 s to import) and without a second copy in memory.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger

from src.config import Config
from src.data.arrays import ArraySplit, csr_tensor, split_arrays
from src.data.source import Source, refuse_augmentation_of_arrays, refuse_pixel_statistics, shaped
from src.data.sources.fetch import alone, file_stamp, missing, read_timeout
from src.data.splits import Data, Preprocessing
from src.data.splits_map import bases_used, check_bases
from src.support import one_line, unknown_name, write_atomically

SUFFIXES = {"train": "", "test": "_test"}  # of the site's names, for the parts
FORMAT = 1  # of the prepared folder

# Mistakes in the table of libsvmdata 0.5. w3a…w6a are given w1a's files; for usps
# the number of training examples stands as the number of features (16 x 16 pixels).
CORRECTIONS: dict[str, dict[str, Any]] = {
    "usps": {"n_features": 256},
    "usps_test": {"n_features": 256},
    **{f"w{i}a": {"dataset_file": f"w{i}a"} for i in range(3, 7)},
    **{f"w{i}a_test": {"dataset_file": f"w{i}a.t"} for i in range(3, 7)},
}
ROWS_OF_W1A = (2477, 47272)  # and of w1a.t: how to know the wrong file in a cache


def names() -> list[str]:
    from libsvmdata import supported

    return sorted(name for name in supported if not name.endswith(SUFFIXES["test"]))


def check(config: Config, source: Source) -> None:
    """UserError also for a data set or a part that neither data_dir nor the site has."""
    refuse_augmentation_of_arrays(config, source)
    refuse_pixel_statistics(config, source)
    folder = Path(config.data_dir) / "libsvm"
    names = {base: source.name + end for base, end in SUFFIXES.items()}
    used = bases_used(source.splits_map)
    if all(base in names and current_meta(folder, names[base]) for base in used):
        return
    from libsvmdata import supported

    if source.name not in supported:
        alike = [known for known in supported if known.startswith(source.name)] or supported
        raise unknown_name("dataset", source.dataset, [f"libsvm/{known}" for known in alike])
    check_bases(source.splits_map, [b for b in names if names[b] in supported], source.dataset)


def build(config: Config, source: Source, preprocessing: Preprocessing) -> Data:
    """Rows of unit norm, unless data_normalize says otherwise.

    Parts: `train` is NAME, `test` is NAME_test where the site has it. Labels become 0…C-1 in
    sorted order; one number of features holds for both parts.
    """
    folder = (Path(config.data_dir) / "libsvm").absolute()
    names = {base: source.name + SUFFIXES[base] for base in bases_used(source.splits_map)}
    metas = {b: _prepared(folder, n, download=config.data_download) for b, n in names.items()}
    layout = next(iter(metas.values()))["layout"]  # test data lie in memory as training data do
    n_features = max(meta["n_features"] for meta in metas.values())
    classes = np.unique(np.concatenate([meta["classes"] for meta in metas.values()]))
    bases = {
        base: _read(folder / "prepared" / names[base], meta, n_features, layout, classes)
        for base, meta in metas.items()
    }
    splits = split_arrays(bases, source.splits_map, config.data_normalize or "rows")
    labels = tuple(f"{label:g}" for label in classes)
    data = Data(dict(splits), (n_features,), len(labels) or None, labels or None)
    return shaped(config, source, data, preprocessing)


def _read(
    home: Path, meta: Mapping[str, Any], n_features: int, layout: str, classes: np.ndarray
) -> ArraySplit:
    """A part from its prepared arrays.

    inputs: (n, n_features), dense or CSR; on the memory of the arrays unless they have another
    layout, or columns are added. targets: class numbers (n,) int64, real targets (n,) float32, or
    zeros and ones (n, C) float32.
    """
    arrays = {Path(file).stem: np.load(home / file) for file in meta["files"]}
    values = arrays["values"]
    if "columns" in arrays:
        rows, columns = torch.from_numpy(arrays["rows"]), torch.from_numpy(arrays["columns"])
        inputs = csr_tensor(rows, columns, torch.from_numpy(values), n_features)
        inputs = inputs if layout == "csr" else inputs.to_dense()
    else:
        if values.shape[1] < n_features:
            values = np.pad(values, ((0, 0), (0, n_features - values.shape[1])))
        inputs = torch.from_numpy(values)
        if layout == "csr":
            rows = torch.from_numpy(np.cumsum([0, *np.count_nonzero(values, 1)]))
            columns = torch.from_numpy(values.nonzero()[1])
            inputs = csr_tensor(rows, columns, torch.from_numpy(values[values != 0]), n_features)

    if meta["task"] == "regression":
        return ArraySplit(inputs, torch.from_numpy(arrays["targets"]))
    numbers = torch.from_numpy(np.searchsorted(classes, meta["classes"])[arrays["targets"]])
    if meta["task"] != "multilabel":
        return ArraySplit(inputs, numbers)
    labels_each = torch.from_numpy(np.diff(arrays["ends"]))
    example = torch.repeat_interleave(torch.arange(len(labels_each)), labels_each)
    hot = torch.zeros(len(labels_each), len(classes))
    hot[example, numbers] = 1.0
    return ArraySplit(inputs, hot)


# ---- Files -------------------------------------------------------------------------------


def source_files(folder: Path, name: str) -> list[Path]:
    """libsvmdata's files of a data set that are there; exactly two when all is well."""
    names = [f"{name}_{part}.{ending}" for part in "Xy" for ending in ("npz", "npy")]
    return [folder / file for file in names if (folder / file).exists()]


def current_meta(folder: Path, name: str) -> dict[str, Any] | None:
    """meta.json of the prepared arrays, if these are whole and made from the files there are.

    Files of libsvmdata that were deleted since then don't matter.
    """
    home, sources = folder / "prepared" / name, source_files(folder, name)
    try:
        meta = json.loads((home / "meta.json").read_text())
        is_current = (
            meta["format"] == FORMAT
            and all((home / f).stat().st_size == size for f, size in meta["files"].items())
            and all(meta["sources"].get(f.name) == file_stamp(f) for f in sources)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return meta if is_current else None


def _prepared(folder: Path, name: str, *, download: bool) -> dict[str, Any]:
    """meta.json of the prepared arrays, which are fetched and prepared where they are needed.

    In this process: at its peak it takes no more memory than one of its own would (measured),
    and 135 MB for the modules remain, in the one run that prepares.
    """
    if meta := current_meta(folder, name):
        return meta
    files = f"{name}_X.npz (or .npy) and {name}_y.npy (or .npz)"
    fault = "is missing"
    if download or source_files(folder, name):
        with alone(folder / f"{name}.lock", f"fetches or prepares libsvm/{name}"):
            if meta := current_meta(folder, name):  # another process has prepared them
                return meta
            if source_files(folder, name):
                try:
                    return prepare(folder, name)
                except Exception as error:  # whatever numpy and scipy raise on broken files
                    fault = f"is broken ({one_line(error)})"
            if download:
                logger.warning("libsvm/{} {}: fetching it into {}", name, fault, folder)
                try:
                    return prepare(folder, name, fetch=True)
                except Exception as error:
                    reason = f"could not be fetched ({one_line(error)})"
                    raise missing(f"libsvm/{name}", reason, folder, files) from error
    raise missing(f"libsvm/{name}", f"{fault} and data_download is false", folder, files)


def prepare(folder: Path, name: str, *, fetch: bool = False) -> dict[str, Any]:
    """Prepare the arrays from libsvmdata's files, fetched first if so requested; meta.json.

    All is written aside and renamed.
    """
    import libsvmdata
    from libsvmdata.libsvm import LIBSVM_BASE_URL

    dataset = libsvmdata.ALL_DATASETS[name]
    aside, home = folder / ".aside" / name, folder / "prepared" / name
    shutil.rmtree(aside, ignore_errors=True)  # what a killed process left
    aside.mkdir(parents=True)
    try:
        if fetch:
            # Into a folder of its own: libsvmdata's test of what is cached matches other data
            # sets' files as well, and deletes them.
            vars(dataset).update(CORRECTIONS.get(name, {}), dataset_dir=aside)
            address = (LIBSVM_BASE_URL, dataset.task_name, dataset.dataset_file)
            dataset.dataset_url = "/".join(address)
            with read_timeout():
                libsvmdata.fetch_dataset(name, verbose=sys.stdout.isatty())
            for stale in source_files(folder, name):
                stale.unlink()
            for fetched in source_files(aside, name):
                os.replace(fetched, folder / fetched.name)
        sources = source_files(folder, name)
        stamps = {source.name: file_stamp(source) for source in sources}
        inputs, targets = _read_sources(name, sources)
        layout, classes, arrays = _arrays(inputs, targets, dataset.task_name)
        (aside / "prepared").mkdir()
        for key, array in arrays.items():
            with open(aside / "prepared" / f"{key}.npy", "wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        meta = {
            "format": FORMAT,
            "task": dataset.task_name,
            "layout": layout,
            "n_features": inputs.shape[1],
            "classes": classes,
            "files": {f.name: f.stat().st_size for f in sorted((aside / "prepared").iterdir())},
            "sources": stamps,
        }
        write_atomically(aside / "prepared" / "meta.json", json.dumps(meta))
        home.parent.mkdir(exist_ok=True)
        shutil.rmtree(home, ignore_errors=True)
        os.replace(aside / "prepared", home)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return meta


def _read_sources(name: str, sources: list[Path]) -> tuple[Any, Any]:
    """Inputs and targets as libsvmdata keeps them; raises where the files are broken."""
    from scipy import sparse

    if [file.stem for file in sources] != [f"{name}_X", f"{name}_y"]:
        found = ", ".join(file.name for file in sources) or "none"
        raise ValueError(f"files found: {found}, expected one {name}_X and one {name}_y")
    inputs, targets = (
        sparse.load_npz(f) if f.suffix == ".npz" else np.load(f, allow_pickle=False)
        for f in sources
    )
    if inputs.ndim != 2 or inputs.shape[0] != targets.shape[0] or inputs.shape[0] == 0:
        raise ValueError(f"{inputs.shape} inputs do not fit {targets.shape} targets")
    corrections = CORRECTIONS.get(name, {})
    if "dataset_file" in corrections and inputs.shape[0] in ROWS_OF_W1A:
        raise ValueError("the files hold w1a under another name, an error of libsvmdata 0.5")
    if "n_features" in corrections:
        inputs = inputs[:, : corrections["n_features"]]
    return inputs, targets


def _arrays(inputs: Any, targets: Any, task: str) -> tuple[str, list[float], dict[str, np.ndarray]]:
    """The layout that is smaller, the classes in sorted order, and the arrays to keep.

    Layout 'dense': {values} (n, d); 'csr': {rows, columns, values}. {targets}: positions in the
    classes, or reals for regression; where examples have several labels, those of example i are
    targets[ends[i]:ends[i + 1]].
    """
    from scipy import sparse

    nnz = inputs.nnz if sparse.issparse(inputs) else np.count_nonzero(inputs)
    index = np.int32 if nnz < 2**31 else np.int64
    csr_bytes = nnz * (4 + np.dtype(index).itemsize) + (inputs.shape[0] + 1) * index().itemsize
    layout = "dense" if 4 * inputs.shape[0] * inputs.shape[1] <= csr_bytes else "csr"
    if layout == "dense":
        if sparse.issparse(inputs):
            inputs = inputs.astype(np.float32).toarray()
        arrays = {"values": np.ascontiguousarray(inputs, np.float32)}
    else:
        csr = sparse.csr_matrix(inputs, dtype=np.float32)
        csr.sum_duplicates()  # sorts the columns of each row, too
        rows, columns = csr.indptr.astype(index), csr.indices.astype(index)
        arrays = {"rows": rows, "columns": columns, "values": csr.data}
    if not np.isfinite(arrays["values"]).all():
        raise ValueError("there are values that are no finite float32")

    if task == "regression":
        return layout, [], arrays | {"targets": targets.astype(np.float32)}
    if task == "multilabel":
        arrays["ends"], targets = targets.indptr.astype(np.int64), targets.indices
    classes, positions = np.unique(targets, return_inverse=True)
    arrays["targets"] = positions.astype(np.int32)
    return layout, classes.astype(float).tolist(), arrays
