"""Values as text in pictures: short, different where the values are, drawn as they stand."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from src.analysis.settings import LONGEST, format_value, is_number


def literal(text: str) -> str:
    """For matplotlib, to which what stands between two dollars is mathematics."""
    return text.replace("$", r"\$")


def width_of(text: str, size: float) -> float:
    """Inches of a line in letters of so many points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), False)
    return float(width) / 72


# ---- Values ------------------------------------------------------------------------------


def names_of(values: Sequence[Any], most: int = LONGEST) -> list[str]:
    """Of different values; strings that look like other values among them are quoted."""
    is_mixed = not all(isinstance(value, str) for value in values)
    texts = [_text(value, is_mixed=is_mixed) for value in values]
    counts = Counter(texts)
    pairs = zip(values, texts, strict=True)
    texts = [str(v) if is_number(v) and counts[text] > 1 else text for v, text in pairs]
    return different(texts, most)


def _text(value: Any, *, is_mixed: bool) -> str:
    """The whole of it."""
    if isinstance(value, str):
        return f"'{value}'" if not value or (is_mixed and _is_like_another(value)) else value
    return json.dumps(value, default=str) if isinstance(value, list | dict) else format_value(value)


def _is_like_another(text: str) -> bool:
    """'0.9', 'null', 'true', '[1]'"""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


# ---- Texts -------------------------------------------------------------------------------


def different(texts: Sequence[str], most: int = LONGEST) -> list[str]:
    """Of at most so many characters; those that begin alike are cut where they do."""
    names = [cut(text, most) for text in texts]
    counts = Counter(names)
    for name in [name for name, count in counts.items() if count > 1]:
        alike = [i for i, other in enumerate(names) if other == name]
        taken = {other for other in names if other != name}
        for i, new in zip(alike, _apart([texts[i] for i in alike], most, taken), strict=True):
            names[i] = new
    return names


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _apart(texts: Sequence[str], most: int, taken: set[str]) -> list[str]:
    for names in _ways(texts, most):
        if len(set(names) - taken) == len(texts):
            return names
    names = []
    for text in texts:
        number = len(names) + 1
        while (name := f"{cut(text, most - len(f'#{number}'))}#{number}") in taken:
            number += 1
        names.append(name)
        taken = taken | {name}
    return names


def _ways(texts: Sequence[str], most: int) -> Iterator[list[str]]:
    """Without the begin they share; without the end either; with both, but not the middle."""
    begin = _num_shared(texts)
    rests = [text[begin:] for text in texts]
    yield [cut("…" + rest, most) for rest in rests]
    end = _num_shared([rest[::-1] for rest in rests])
    yield [_without_middle(f"…{rest[: len(rest) - end]}…", most) for rest in rests]
    yield [_without_middle(text, most) for text in texts]


def _num_shared(texts: Sequence[str]) -> int:
    """First letters that are the same in all."""
    columns = enumerate(zip(*texts, strict=False))
    return next((i for i, letters in columns if len(set(letters)) > 1), min(map(len, texts)))


def _without_middle(text: str, most: int) -> str:
    head = most // 2
    return text if len(text) <= most else f"{text[:head]}…{text[head + 1 - most :]}"
