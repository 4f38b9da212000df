"""The arguments of train.py: what they give, and what would have been right."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from src.config.config import read_values, without_dashes
from src.config.yaml_files import read_yaml
from src.logging import free_folder
from src.support import ROOT, OneLineParser, UserError, one_line

MOST_SHOWN = 999  # characters of a command


class CommandLine:
    """python train.py CONFIG [key=value ...]"""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Raises UserError."""
        parser = OneLineParser(prog="train.py", description="Train one model.")
        parser.add_argument("config", nargs="?", help="YAML file with keys of src/keys.py")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="base_lr=0.1 …")
        is_for_help = not {"-h", "--help"}.isdisjoint(arguments)
        if not is_for_help and (dashed := [a for a in arguments if a.startswith("-")]):
            meant = self._text(without_dashes(arguments))
            words = f"keys are written without dashes: {one_line(meant, MOST_SHOWN)}"
            raise UserError(f"{one_line(dashed[0])}: {words}")
        options = parser.parse_args(arguments)
        if not options.config:
            first = self._text([os.path.relpath(ROOT / "test_cfg_digits_linear.yaml")])
            raise UserError(f"a YAML file is missing; to begin with: {first} [key=value ...]")
        if "=" in options.config and not os.path.exists(options.config):
            whole = self._text(["CONFIG.yaml", options.config, *options.overrides])
            raise UserError(f"the first argument is a YAML file: {one_line(whole, MOST_SHOWN)}")
        self.config, self.overrides = options.config, options.overrides
        self.values = read_values(self.config, self.overrides)

    def elsewhere(self, folder: str) -> str:
        """The command that asks for the same in the next free folder."""
        path = free_folder(Path(folder))
        others = [text for text in self.overrides if not text.startswith("output_dir=")]
        return self._text([self.config, *others, given("output_dir", str(path))])

    def _text(self, arguments: Sequence[str]) -> str:
        return f"python {shlex.join([os.path.relpath(ROOT / 'train.py'), *arguments])}"


def given(key: str, text: str) -> str:
    """key=text, in quotes where YAML would read something else."""
    try:
        is_plain = read_yaml(text) == text
    except UserError:
        is_plain = False
    return f"{key}={text if is_plain else json.dumps(text)}"
