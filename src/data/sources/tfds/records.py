"""Serialised examples in files of records, by number."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np


class Records(ABC):
    """Those in parts of files, one part after the other: records[i] -> bytes.

    instructions: TFDS's, one a part, with filename, skip, take and examples_in_shard.
    """

    def __init__(self, instructions: Sequence[Any]) -> None:
        self.files = [str(part.filename) for part in instructions]
        self.skips = [part.skip for part in instructions]
        self.firsts = np.cumsum([0] + [part.take for part in instructions])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        part = int(np.searchsorted(self.firsts, index, side="right")) - 1
        return self.read(part, self.skips[part] + index - int(self.firsts[part]))

    @abstractmethod
    def read(self, part: int, position: int) -> bytes:
        """The record at this position of the file of this part."""
