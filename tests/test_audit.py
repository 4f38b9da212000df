"""Numbers agree with independent references: the table that benchmarks/audit.py prints."""

import math

import pytest

from benchmarks.audit import SECTIONS, compare


@pytest.mark.parametrize("section", SECTIONS)
def test_no_row_is_off(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = list(SECTIONS[section]())
    assert len(rows) > 3
    assert not [row for row in rows if row.is_off]


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        ([1.0, 2.0], [1.0, 2.1]),
        ([1.0, math.nan], [1.0, 2.0]),
        ([math.inf], [-math.inf]),
        ([1.0], [1.0, 1.0]),
    ],
)
def test_an_audit_sees_what_differs(ours, reference):
    assert compare("", "", ours, reference, 1e-6).is_off


def test_missing_values_may_be_missing_in_both():
    assert not compare("", "", [1, math.nan, math.inf], [1, math.nan, math.inf], 0).is_off
