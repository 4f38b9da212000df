"""The files of a LIBSVM data set: libsvmdata's cache, and arrays prepared from it.

FOLDER/NAME_X.npz|npy and NAME_y.npy|npz are what libsvmdata keeps, in float64
and by columns. FOLDER/prepared/NAME/ is made from them once: float32, by rows,
read at once without libsvmdata and without a second copy in memory.

`python -m src.data.sources.libsvm_files JSON` makes them in a process of its own, so
that the memory and the modules this takes are not the training run's.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from src.data.sources.fetch import read_timeout
from src.support import one_line

FORMAT = 1

# Mistakes in the table of libsvmdata 0.5. w3a…w6a are given w1a's files; for usps
# the number of training examples stands as the number of features (16 x 16 pixels).
CORRECTIONS: dict[str, dict[str, Any]] = {
    "usps": {"n_features": 256},
    "usps_test": {"n_features": 256},
    **{f"w{i}a": {"dataset_file": f"w{i}a"} for i in range(3, 7)},
    **{f"w{i}a_test": {"dataset_file": f"w{i}a.t"} for i in range(3, 7)},
}
ROWS_OF_W1A = (2477, 47272)  # and of w1a.t: how to know the wrong file in a cache


def source_files(folder: Path, name: str) -> list[Path]:
    """libsvmdata's files of a data set that are there; exactly two when all is well."""
    names = [f"{name}_{part}.{ending}" for part in "Xy" for ending in ("npz", "npy")]
    return [folder / file for file in names if (folder / file).exists()]


def prepared_folder(folder: Path, name: str) -> Path:
    """Where the prepared arrays of a data set stand."""
    return folder / "prepared" / name


def is_current(folder: Path, name: str, layout: str | None = None) -> bool:
    """Whether the prepared arrays are whole, of that layout, and made from the files there are.

    Files of libsvmdata that were deleted since then don't matter.
    """
    home = prepared_folder(folder, name)
    try:
        meta = json.loads((home / "meta.json").read_text())
        return (
            meta["format"] == FORMAT
            and layout in (None, meta["layout"])
            and all((home / f).stat().st_size == size for f, size in meta["files"].items())
            and all(meta["sources"].get(f.name) == _stamp(f) for f in source_files(folder, name))
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """meta.json and the arrays of a data set that is_current."""
    home = prepared_folder(folder, name)
    meta = json.loads((home / "meta.json").read_text())
    return meta, {Path(file).stem: np.load(home / file) for file in meta["files"]}


def make(folder: Path, name: str, *, fetch: bool, layout: str | None, mirror: str | None) -> None:
    """Prepare the arrays from libsvmdata's files, which are fetched anew first where asked.

    All is written aside and renamed. layout: 'dense', 'csr' or None, the smaller.
    mirror: the address that holds the LIBSVM site's folders, None for the site.
    """
    aside = folder / ".aside" / name
    shutil.rmtree(aside, ignore_errors=True)  # what a killed process left
    work = aside / str(os.getpid())
    work.mkdir(parents=True)
    try:
        if fetch:
            _fetch(folder, name, work, mirror)
        _prepare(folder, name, work / "prepared", layout)
        home = prepared_folder(folder, name)
        home.parent.mkdir(exist_ok=True)
        shutil.rmtree(home, ignore_errors=True)
        os.replace(work / "prepared", home)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fetch(folder: Path, name: str, work: Path, mirror: str | None) -> None:
    """Let libsvmdata fetch into a folder of its own: its test of what is cached matches
    other data sets' files as well, and deletes them."""
    import libsvmdata
    from libsvmdata.libsvm import LIBSVM_BASE_URL

    dataset = libsvmdata.ALL_DATASETS[name]
    vars(dataset).update(CORRECTIONS.get(name, {}), dataset_dir=work)
    address = (mirror or LIBSVM_BASE_URL, dataset.task_name, dataset.dataset_file)
    dataset.dataset_url = "/".join(address)
    with read_timeout():
        libsvmdata.fetch_dataset(name, verbose=sys.stdout.isatty())
    for stale in source_files(folder, name):
        stale.unlink()
    for file in source_files(work, name):
        os.replace(file, folder / file.name)


def _prepare(folder: Path, name: str, home: Path, layout: str | None) -> None:
    import libsvmdata

    sources = source_files(folder, name)
    stamps = {file.name: _stamp(file) for file in sources}
    inputs, targets = _read_sources(name, sources)
    dataset = libsvmdata.ALL_DATASETS[name]
    if inputs.shape[1] > (n_features := CORRECTIONS.get(name, {}).get("n_features", np.inf)):
        inputs = inputs[:, :n_features]
    layout, arrays = _input_arrays(inputs, layout)
    classes, more = _target_arrays(targets, dataset.task_name)
    home.mkdir()
    sizes = {f"{key}.npy": _save(home / f"{key}.npy", a) for key, a in {**arrays, **more}.items()}
    meta = {
        "format": FORMAT,
        "task": dataset.task_name,
        "layout": layout,
        "n_features": inputs.shape[1],
        "classes": classes,
        "files": sizes,
        "sources": stamps,
    }
    with open(home / "meta.json", "w") as f:
        json.dump(meta, f)
        f.flush()
        os.fsync(f.fileno())


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
    if "dataset_file" in CORRECTIONS.get(name, {}) and inputs.shape[0] in ROWS_OF_W1A:
        raise ValueError("the files hold w1a under another name, an error of libsvmdata 0.5")
    return inputs, targets


def _input_arrays(inputs: Any, layout: str | None) -> tuple[str, dict[str, np.ndarray]]:
    """The layout, and {values} (n, d) or the CSR arrays {rows, columns, values}."""
    from scipy import sparse

    nnz = inputs.nnz if sparse.issparse(inputs) else np.count_nonzero(inputs)
    index = np.int32 if nnz < 2**31 else np.int64
    csr_bytes = nnz * (4 + np.dtype(index).itemsize) + (inputs.shape[0] + 1) * index().itemsize
    if layout is None:
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
    return layout, arrays


def _target_arrays(targets: Any, task: str) -> tuple[list[float], dict[str, np.ndarray]]:
    """The classes in sorted order, and {targets}: positions in them, or reals for regression.

    Where examples have several labels, those of example i are targets[ends[i]:ends[i + 1]].
    """
    if task == "regression":
        return [], {"targets": targets.astype(np.float32)}
    ends = {}
    if task == "multilabel":
        ends, targets = {"ends": targets.indptr.astype(np.int64)}, targets.indices
    classes, positions = np.unique(targets, return_inverse=True)
    return classes.astype(float).tolist(), {"targets": positions.astype(np.int32), **ends}


def _save(path: Path, array: np.ndarray) -> int:
    """Write the array for good; the size of the file in bytes."""
    with open(path, "wb") as f:
        np.save(f, array)
        f.flush()
        os.fsync(f.fileno())
    return path.stat().st_size


def _stamp(file: Path) -> list[int]:
    """What tells one version of a file from another: bytes, time of change (ns)."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    try:
        make(Path(request.pop("folder")), request.pop("name"), **request)
    except Exception as error:  # the process that asked shows it
        sys.exit(one_line(error))
