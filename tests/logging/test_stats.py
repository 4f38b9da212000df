"""What a row of stats takes: numbers of any kind, which become plain ones."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from src.logging.records import Stats
from src.support.errors import UserError


def recorded(value):
    return Stats(["test"], ["last"], ["loss"]).add(1, 10, {"test/last": {"mine": value}})[
        "test/last/mine"
    ]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (0.5, 0.5),
        (3, 3),
        (True, 1),
        (np.mean([0.25, 0.75]), 0.5),
        (np.float32(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), 1),
        (np.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(3), 3),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (Fraction(1, 2), 0.5),
        (-np.inf, -float("inf")),
    ],
)
def test_any_number_is_recorded_as_a_plain_one(value, plain):
    found = recorded(value)
    assert found == plain
    assert type(found) is type(plain if not isinstance(plain, bool) else 1)


@pytest.mark.parametrize(
    "value", [np.zeros(2), torch.zeros(2), np.zeros(1), [0.5], "0.5", None, 1j, {"a": 1}]
)
def test_what_is_no_number_raises_and_names_its_column(value):
    with pytest.raises(UserError, match=r"^test/last/mine: got .*, expected a number"):
        recorded(value)
