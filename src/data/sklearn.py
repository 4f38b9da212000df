"""sklearn/NAME: the small data sets that ship inside scikit-learn, so that nothing is fetched."""

from collections.abc import Mapping

import numpy as np
import torch

from src.data.arrays import split_arrays
from src.data.slices import check_bases
from src.data.splits import ArraySplit, Data
from src.names import pick

# name -> how it is normalised unless data_normalize says otherwise
SETS = {
    "breast_cancer": "columns",
    "diabetes": "columns",  # regression
    "digits": "none",  # images; pixels 0…16 become 0…1
    "iris": "columns",
    "wine": "columns",
}
TEST_FRACTION = 0.2
SPLIT_SEED = 0


def load(name: str, splits_map: Mapping[str, str], *, normalize: str | None = None) -> Data:
    """The data set, cut into `train` (80 %) and `test` (20 %) by a fixed stratified shuffle."""
    own_normalize = pick(SETS, name, "dataset")
    check_bases(splits_map, ("train", "test"), f"sklearn/{name}")
    from sklearn import datasets

    inputs, targets = getattr(datasets, f"load_{name}")(return_X_y=True)
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
    splits = split_arrays(bases, splits_map, normalize or own_normalize)
    n_classes = None if is_regression else int(targets.max()) + 1
    return Data(dict(splits), inputs.shape[1:], n_classes)


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
