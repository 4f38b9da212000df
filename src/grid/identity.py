"""When two rows ask for the same. (A report needs it, and is not to wait for numpy.)"""

from collections.abc import Mapping
from typing import Any


def row_identity(row: Mapping[str, Any]) -> frozenset[Any]:
    """Equal for rows that ask for the same: null is what a missing key is."""
    return frozenset((key, same(value)) for key, value in row.items() if value is not None)


def same(value: Any) -> Any:
    """Hashable, equal for equal values: 1 is 1.0, but True is no number."""
    if isinstance(value, list | tuple):
        return ("list", *map(same, value))
    if isinstance(value, Mapping):
        return ("mapping", frozenset((key, same(item)) for key, item in value.items()))
    return ("boolean", value) if isinstance(value, bool) else value
