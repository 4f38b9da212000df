"""The arguments of train.py: what they give, and what would have been right.

What takes long to import is imported where it is needed: --help does without.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from src.support import ROOT, OneLineParser, UserError, one_line, processes

if TYPE_CHECKING:
    from src.config.config import Config

MOST_SHOWN = 999  # characters of a command
# The options; all else is key=value
OPTIONS = ("-h", "--help", "--keys", "--list", "--print-config", "--json")


class CommandLine:
    """python train.py CONFIG [key=value ...]"""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Raises UserError with all mistakes in keys and values; names are the run's to look up.
        SystemExit where --help, --keys or --print-config has been answered."""
        parser = OneLineParser(prog="train.py", description="Train one model.")
        parser.add_argument("config", nargs="?", help="YAML file with keys of src/keys.py")
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="base_lr=0.1 …")
        parser.add_argument(
            "--keys", nargs="?", const="", metavar="PATTERN", help="say what the keys mean, and end"
        )
        parser.add_argument(
            "--list",
            nargs="+",
            metavar=("KIND", "PATTERN"),
            help="names that exist: models, datasets, optimizers, schedules, averages, losses, "
            "metrics",
        )
        parser.add_argument(
            "--print-config", action="store_true", help="print the value of every key, and end"
        )
        parser.add_argument(
            "--json", action="store_true", help="print what the run reached as JSON, for programs"
        )
        dashed = [x for x in arguments if x.startswith("-") and x not in OPTIONS]
        if dashed:
            meant = one_line(self._text(without_dashes(arguments)), MOST_SHOWN)
            raise UserError(f"{one_line(dashed[0])}: keys are written without dashes: {meant}")
        options = parser.parse_args(arguments)
        if options.keys is not None:
            from src.config.key_notes import describe_keys

            print(describe_keys(options.keys))
            raise SystemExit
        self.asks_for_names, self.asks_for_json = options.list, options.json
        self.checked: Config | None = None  # of --list and of a stack there is none
        if options.list:
            if len(options.list) > 2:
                raise UserError(f"--list: one pattern, not {len(options.list) - 1}")
            self.config, self.overrides, self.values = "", [], {}
            return
        if not options.config:
            first = self._text([os.path.relpath(ROOT / "test_cfg_digits_linear.yaml")])
            raise UserError(f"a YAML file is missing; to begin with: {first} [key=value ...]")
        if "=" in options.config and not os.path.exists(options.config):
            whole = self._text(["CONFIG.yaml", options.config, *options.overrides])
            raise UserError(f"the first argument is a YAML file: {one_line(whole, MOST_SHOWN)}")
        self.config, self.overrides = options.config, options.overrides
        from src.config.config import make_config, read_values
        from src.config.yaml_files import write_yaml

        self.values = read_values(self.config, self.overrides)
        if isinstance(self.values.get("stack"), list):  # written by submit_multiple.py --stack
            return
        if {"worker", "output_dir"} == {*self.values}:  # by --workers
            from src.grid import run_worker

            raise SystemExit(run_worker(self.values))
        try:
            self.checked = make_config(self.values)
        except UserError as error:
            from src.grid import find_mistakes

            raise UserError("\n".join(find_mistakes(self.values)) or str(error)) from None
        if options.print_config:
            print(write_yaml(asdict(self.checked)), end="")
            raise SystemExit

    @classmethod
    def answer_early(cls, arguments: Sequence[str]) -> None:
        """Ends the program here if that needs no torch: with the answer to a question, or with all
        mistakes in keys and values."""
        try:
            cls(arguments)
        except UserError as error:
            sys.exit(processes.report_exit(error, 2))

    @property
    def messages(self) -> TextIO:
        """Where words go: with --json nothing else than that is printed."""
        return sys.stderr if self.asks_for_json else sys.stdout

    @staticmethod
    def override(key: str, text: str) -> str:
        """key=text, in quotes where YAML would read something else."""
        from src.config.yaml_files import read_yaml

        try:
            is_plain = read_yaml(text) == text
        except UserError:
            is_plain = False
        return f"{key}={text if is_plain else json.dumps(text)}"

    def elsewhere(self, folder: str) -> str:
        """The command that asks for the same in the next free folder."""
        from src.logging import free_folder

        others = [text for text in self.overrides if not text.startswith("output_dir=")]
        folder = self.override("output_dir", str(free_folder(Path(folder))))
        return self._text([self.config, *others, folder])

    def _text(self, arguments: Sequence[str]) -> str:
        return f"python {shlex.join([os.path.relpath(ROOT / 'train.py'), *arguments])}"


def without_dashes(arguments: Sequence[str]) -> list[str]:
    """What train.py takes, of arguments that are written as options.

    >>> without_dashes(["--lr", "0.1", "--wandb", "seed_model=1"])
    ['base_lr=0.1', 'wandb=true', 'seed_model=1']
    """
    from src.config.config import KEYS, nearest_key

    meant, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            meant.append(word)
            continue
        key, equals, value = word.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if key not in KEYS:
            key = nearest_key(key) or key
        is_value_next = rest and not re.match(r"-|[^=]*=|.*\.ya?ml$", rest[0])
        if not equals:
            value = rest.pop(0) if is_value_next else "true"
        meant.append(f"{key}={value}")
    return meant
