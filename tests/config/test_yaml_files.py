"""What is written is read back as it was; what would crash or fill the memory is a line."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import read_yaml, read_yaml_file, write_yaml
from src.support.errors import UserError

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@settings(max_examples=40)
@given(st.dictionaries(st.text(), values))
def test_written_values_are_read_back(mapping):
    assert read_yaml(write_yaml(mapping)) == mapping


def test_a_text_that_looks_like_a_number_stays_a_text():
    for text in ("1e-3", "1E5", "+.5e1", "0.1", "on", "null", "2026-01-01", "0x1f", "1_000"):
        assert read_yaml(write_yaml({"key": text})) == {"key": text}


def nested_aliases(block: str) -> str:
    """Each of ten lines stands for nine of the line before; block: how, with {} for them."""
    lines = ["a: &a " + block.format("{x: 1}")]
    for name, before in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"{name}: &{name} " + block.format(", ".join([f"*{before}"] * 9)))
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested_aliases("[{}]"), "more than 100,000 values"),
        (nested_aliases("{{<<: [{}]}}"), "more than 100,000 values"),
        ("".join(f"key{n}: {n}\n" for n in range(200_000)), "it begins key0, 0, key1, 1"),
        ("a: &a [" + "x" * 10_000 + "]\nb: [" + "*a, " * 9_999 + "*a]", "more than 100,000"),
        ("a: &a [*a]", "YAML, line 1: a: an alias stands inside what it stands for"),
        ("a: 1\nb: &b {c: {d: *b}}", "YAML, line 2: b: an alias stands inside"),
        ("a: {b: [1, !!int x]}", "YAML, line 1: a.b[1]: 'x' is no int"),
        ("a:\n  b: !!float q", "YAML, line 2: a.b: 'q' is no float"),
        ("a: !!bool maybe", "a: 'maybe' is no bool"),
        ("a: !!int ''", "a: '' is no int"),
        ("a: 0b_", "a: '0b_' is no int"),
        ("a: " + "1" * 5_000, "a: a number of 5,000 digits"),
        ("a: 0x" + "f" * 5_000, "a: a number of 5,002 digits"),
        ("a: " + "1:" * 5_000 + "1", "a: a number of 10,001 digits"),
        ("a: " + "9" * 5_000 + ".5", "a: a number of 5,002 digits"),
        ("[" * 60 + "]" * 60, "nested deeper than 50 levels"),
        ("{a: " * 60 + "}" * 60, "nested deeper than 50 levels"),
        ("[" * 100_000, "not YAML"),
        ("- " * 100_000, "not YAML"),
        ("a: *" + "b" * 100_000, "undefined alias"),
        ("a: !!" + "b" * 100_000 + " 1", "could not determine a constructor for the tag"),
        ("a: !!timestamp 2001-01-01", "could not determine a constructor"),
        ("a: !!binary aGk=", "could not determine a constructor"),
        ("a: \x00", "control characters are not allowed"),
        ("a: \ud800", "not a text in UTF-8"),
    ],
    ids=lambda text: text[:20],
)
def test_what_would_take_for_ever_or_crash_is_a_line(text, message):
    with pytest.raises(UserError) as caught:
        read_yaml(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_anchors_and_merges_of_modest_size_work():
    text = "base: &base {lr: 1, wd: 0}\none: {<<: *base, lr: 2}\ntwo: *base"
    assert read_yaml(text) == {
        "base": {"lr": 1, "wd": 0},
        "one": {"lr": 2, "wd": 0},
        "two": {"lr": 1, "wd": 0},
    }


@pytest.mark.parametrize("text", ["2001-13-45", "2001-01-01T25:00:00Z", "2026-11-28", "="])
def test_dates_stay_what_was_typed(text):
    assert read_yaml(f"key: {text}") == {"key": text}
    assert read_yaml(write_yaml({"key": text})) == {"key": text}
    assert yaml.safe_load(write_yaml({"key": text})) == {"key": text}


def test_a_file_without_an_end_is_not_read_to_it():
    with pytest.raises(UserError, match="larger than 16 MB"):
        read_yaml_file("/dev/zero")


def test_a_file_that_is_none_is_said(tmp_path):
    for path, words in ((tmp_path, "Is a directory"), ("a\0b", "not a text"), ("x" * 300, "name")):
        with pytest.raises(UserError, match=words):
            read_yaml_file(path)
