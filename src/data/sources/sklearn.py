"""sklearn/NAME: the small data sets that ship inside scikit-learn, so that nothing is fetched.

They are read from the files of the package: importing sklearn takes longer than training on them.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from src.config import Config
from src.data.arrays import ArraySplit, split_arrays
from src.data.source import Source, refuse_augmentation_of_arrays, shaped
from src.data.splits import Data, Preprocessing
from src.data.splits_map import check_bases
from src.support import UserError, pick


@dataclass(frozen=True)
class BundledSet:
    """A file of the package, and how its inputs are normalised unless data_normalize says so."""

    file: str
    normalize: str = "columns"
    has_header: bool = True  # number of rows, of columns, and what the classes are called


SETS = {
    "breast_cancer": BundledSet("breast_cancer.csv"),
    "diabetes": BundledSet("diabetes_data_raw.csv.gz", has_header=False),  # regression
    "digits": BundledSet("digits.csv.gz", "none", has_header=False),  # pixels 0…16 become 0…1
    "iris": BundledSet("iris.csv"),
    "wine": BundledSet("wine_data.csv"),
}
TEST_FRACTION = 0.2
SPLIT_SEED = 0


def names() -> list[str]:
    return [*SETS]


def check(config: Config, source: Source) -> None:
    refuse_augmentation_of_arrays(config, source, are_images=source.name == "digits")
    pick({f"sklearn/{known}": known for known in SETS}, source.dataset, "dataset")
    check_bases(source.splits_map, ("train", "test"), source.dataset)


def build(config: Config, source: Source, preprocessing: Preprocessing) -> Data:
    """The data set, cut into `train` (80 %) and `test` (20 %) by a fixed stratified shuffle."""
    name = source.name
    inputs, targets = read(name)
    is_regression = not np.issubdtype(targets.dtype, np.integer)
    if name == "digits":
        inputs = (inputs / 16).reshape(-1, 1, 8, 8)
    train, test = stratified_split(np.zeros(len(targets), int) if is_regression else targets)
    inputs = inputs.astype(np.float32)
    targets = targets.astype(np.float32 if is_regression else np.int64)
    bases = {
        base: ArraySplit(torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows]))
        for base, rows in {"train": train, "test": test}.items()
    }
    splits = split_arrays(bases, source.splits_map, config.data_normalize or SETS[name].normalize)
    n_classes = None if is_regression else int(targets.max()) + 1
    data = Data(dict(splits), inputs.shape[1:], n_classes, class_names(name))
    return shaped(config, source, data, preprocessing)


def read(name: str) -> tuple[np.ndarray, np.ndarray]:
    """What sklearn.datasets.load_NAME(return_X_y=True) returns, (n, features) and (n,)."""
    file = _folder() / SETS[name].file
    if name == "diabetes":
        inputs = np.loadtxt(file)
        centred = inputs - inputs.mean(0)
        targets = np.loadtxt(_folder() / "diabetes_target.csv.gz")
        return centred / np.sqrt((centred**2).sum(0)), targets
    table = np.loadtxt(file, delimiter=",", skiprows=int(SETS[name].has_header))
    return table[:, :-1], table[:, -1].astype(int)


def class_names(name: str) -> tuple[str, ...] | None:
    """What sklearn.datasets.load_NAME().target_names lists, as text; None for regression."""
    if not SETS[name].has_header:
        return tuple("0123456789") if name == "digits" else None
    with open(_folder() / SETS[name].file, encoding="utf-8") as file:
        _, _, *names = file.readline().strip().split(",")
    return tuple(names)


def _folder() -> Path:
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("dataset: sklearn/… needs `pip install scikit-learn`")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


def stratified_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of train and test, shuffled; test has 20 % of each class.

    The same for ever: RandomState's numbers are frozen, default_rng's are not.
    """
    order = np.random.RandomState(SPLIT_SEED).permutation(len(labels))
    shuffled = labels[order]
    is_test = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(shuffled == label)
        is_test[rows[: round(TEST_FRACTION * len(rows))]] = True
    return order[~is_test], order[is_test]
