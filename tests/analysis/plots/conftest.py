"""Every picture is drawn without a warning; a small sweep to draw."""

import warnings

import pandas as pd
import pytest
from figures import sweep


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def frame() -> pd.DataFrame:
    return sweep()
