import pandas as pd
import pytest

from src.analysis import between, select
from src.support.errors import UserError


@pytest.fixture
def df() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": ["linear", "tiny/lenet", "tiny/vgg", "linear/no_bias", "tinyish"],
            "base_lr": [1e-4, 1e-3, 0.05, 0.1, 2.0],
            "averaging": [None, "ema_0.99", ["ema", "poly"], None, "ema"],
            "early_stopping_patience": [None, 1, 2, None, 3],
            "model_pretrained": [True, False, False, True, False],
            "batch_size": [1, 1, 2, 2, 3],
        },
        index=list("abcde"),
    )


@pytest.mark.parametrize(
    ("wanted", "rows"),
    [
        ({"model": "tiny"}, "bc"),
        ({"model": "linear"}, "ad"),
        ({"model": "linear/no_bias"}, "d"),
        ({"model": ["tiny/vgg", "linear/no_bias"]}, "cd"),
        ({"base_lr": between(1e-3, 0.1)}, "bcd"),
        ({"base_lr": 0.05}, "c"),
        ({"base_lr": 0.1 * 0.5 + 1e-17}, "c"),
        ({"batch_size": range(1, 2)}, "ab"),
        ({"averaging": None}, "ad"),
        ({"early_stopping_patience": None}, "ad"),
        ({"averaging": [None, "ema"]}, "ade"),
        ({"model_pretrained": True}, "ad"),
        ({"batch_size": 1}, "ab"),  # which True equals in Python
        ({"batch_size": True}, ""),
        ({"batch_size": lambda size: size > 1, "model": "tiny"}, "c"),
        ({"base_lr": between(5, 6)}, ""),
        ({"base_lr": 2.0, "model": "tiny"}, ""),  # though such models there are
        ({}, "abcde"),
    ],
)
def test_rows_are_chosen_by_their_keys(df, wanted, rows):
    assert select(df, **wanted).index.tolist() == list(rows)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"modle": "tiny"}, r"select: unknown 'modle'; did you mean 'model'\?"),
        ({"base_lr": "0.1"}, r"base_lr: got '0.1', expected one of 0\.0"),
        ({"model": "tiny/lenett"}, r"model: got 'tiny/lenett', expected one of linear, .*'tiny/le"),
    ],
)
def test_names_that_nothing_has_are_refused(df, wanted, words):
    with pytest.raises(UserError, match=words):
        select(df, **wanted)
