import numpy as np
import pytest
from sklearn import datasets

from src.data.sources.sklearn import SETS, class_names, read


@pytest.mark.parametrize("name", SETS)
def test_the_files_read_directly_hold_what_scikit_learn_loads(name):
    inputs, targets = read(name)
    expected_inputs, expected_targets = getattr(datasets, f"load_{name}")(return_X_y=True)
    np.testing.assert_allclose(inputs, expected_inputs, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(targets, expected_targets)
    assert np.issubdtype(targets.dtype, np.integer) == np.issubdtype(
        expected_targets.dtype, np.integer
    )


@pytest.mark.parametrize("name", SETS)
def test_the_classes_are_called_as_scikit_learn_calls_them(name):
    expected = getattr(getattr(datasets, f"load_{name}")(), "target_names", None)
    found = class_names(name)
    assert found == (None if expected is None else tuple(map(str, expected)))
