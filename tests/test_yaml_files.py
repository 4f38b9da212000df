"""What is written is read back as it was."""

from hypothesis import given
from hypothesis import strategies as st

from src.yaml_files import read_yaml, write_yaml

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(st.dictionaries(st.text(), values))
def test_written_values_are_read_back(mapping):
    assert read_yaml(write_yaml(mapping)) == mapping


def test_a_text_that_looks_like_a_number_stays_a_text():
    for text in ("1e-3", "1E5", "+.5e1", "0.1", "on", "null", "2026-01-01", "0x1f", "1_000"):
        assert read_yaml(write_yaml({"key": text})) == {"key": text}
