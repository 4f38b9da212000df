"""Config: the keys of src/keys.py in one flat, frozen dataclass, which is checked and saved."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from src.config.expressions import evaluate
from src.config.yaml_files import read_yaml, read_yaml_file, write_yaml
from src.keys import (
    CUDA_GRAPHS,
    INFERRED_FROM_DATA,
    MAX_ALLOWED_LOSS,
    AugmentationKeys,
    Bookkeeping,
    DataKeys,
    ModelKeys,
    OptimKeys,
    Seeds,
    TrackerKeys,
)
from src.support import UserError, bad_value, closest, one_line, short_repr, write_atomically

# What does not go together: a way of multi_gpu, a key, and what that is to be
INCOMPATIBLE_KEYS = (
    ("fsdp", "averaging", "null"),
    ("fsdp", "channels_last", "false"),
    ("fsdp", "compile", "false"),
    ("fsdp", "precision", "fp32, tf32 or bf16"),
    ("dp", "compile", "false"),
)
# What other programs call a key, where spelling alone would lead to a wrong one or none
ALIASES = {
    **dict.fromkeys(("epochs", "max_epochs", "n_epochs", "num_epochs"), "train_length"),
    **dict.fromkeys(("learning_rate", "lr"), "base_lr"),
    **dict.fromkeys(("arch", "model_name", "network"), "model"),
    **{"amp": "precision", "gpus": "multi_gpu", "optimizer": "optim_alg"},
}
MOST_LINES = 20  # of mistakes; the others are counted
KINDS = {"bool", "float", "int", "str", "list[str]"}  # of a key that takes several


@pydantic.dataclasses.dataclass(
    frozen=True, kw_only=True, config=pydantic.ConfigDict(strict=True, extra="forbid")
)
class Config(TrackerKeys, OptimKeys, ModelKeys, AugmentationKeys, DataKeys, Seeds, Bookkeeping):
    """The value of every key. Build it with make_config or load_config, which explain mistakes.

    (Fields come in the order of the bases from right to left.)
    """

    def __post_init__(self) -> None:
        """Contradictions between keys."""

        def refuse(is_wrong: Any, key: str, expected: str) -> None:
            if is_wrong:
                raise bad_value(key, getattr(self, key), expected)

        batch_size, samples = self.batch_size, self.samples_per_epoch
        refuse(self.output_dir == "", "output_dir", "a folder, or null: nothing is written")
        refuse("train" not in self.data_splits_map, "data_splits_map", "a split named 'train'")
        expected = f"a divisor of batch_size={batch_size}"
        refuse(batch_size % self.grad_accum_steps, "grad_accum_steps", expected)
        expected = "null, as steps_per_epoch is given"
        refuse(self.steps_per_epoch and samples, "samples_per_epoch", expected)
        expected = f"at least batch_size={batch_size}"
        refuse(samples and samples < batch_size, "samples_per_epoch", expected)
        is_wrong = self.device and not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", self.device)
        refuse(is_wrong, "device", "cpu, cuda, cuda:NUMBER, mps or null")
        for kind, key, expected in INCOMPATIBLE_KEYS:
            value = getattr(self, key)
            is_wrong = self.multi_gpu == kind and value and str(value) not in expected
            refuse(is_wrong, key, f"{expected}, as multi_gpu is {kind}")
        expected = "average, as sync_bn is true, and each process recomputes by itself"
        refuse(self.averaging_bn == "recompute" and self.sync_bn, "averaging_bn", expected)
        expected = "true or max-autotune-no-cudagraphs, as grad_accum_steps is above 1 and CUDA"
        is_wrong = self.compile in CUDA_GRAPHS and self.grad_accum_steps > 1
        refuse(is_wrong, "compile", f"{expected} graphs overwrite gradients")
        try:
            re.compile(self.best_checkpoint_metric)
        except re.error as error:
            refuse(True, "best_checkpoint_metric", f"a regular expression ({error})")
        if isinstance(self.base_lr, str):
            _draw_base_lr(self.base_lr, seed=0)

    def draw_missing(self, entropy: int | None = None) -> "Config":
        """With seeds where they were null, a random base_lr drawn, and a loss limit.

        The learning rate is a function of seed_training, so the same seeds give the same run.
        entropy: that the seeds are drawn from; None: the system's.
        """
        seeds = map(int, np.random.SeedSequence(entropy).generate_state(2))
        drawn: dict[str, Any] = dict(zip(("seed_model", "seed_training"), seeds, strict=True))
        drawn["max_allowed_loss"] = MAX_ALLOWED_LOSS
        drawn = {key: value for key, value in drawn.items() if getattr(self, key) is None}
        if isinstance(self.base_lr, str):
            seed: Any = drawn.get("seed_training", self.seed_training)
            drawn["base_lr"] = _draw_base_lr(self.base_lr, seed)
        return dataclasses.replace(self, **drawn)

    def save(self, path: Path) -> None:
        """Write all keys as YAML, which load_config and Config.read read."""
        write_atomically(path, write_yaml(dataclasses.asdict(self)))

    @staticmethod
    def read(path: Path) -> "Config":
        """What save has written. Raises UserError, which names the file."""
        try:
            return make_config(_read_mapping(path))
        except UserError as error:
            named = "" if str(error).startswith(str(path)) else f"{path}: "
            raise UserError(f"{named}{error}") from None

    @staticmethod
    def of_saved(values: Mapping[str, Any]) -> "Config":
        """Of the plain values that a state or the file `done` of a run holds. Raises UserError."""
        return make_config(_without_unknown_nulls(values))


KEYS = {field.name: field for field in dataclasses.fields(Config)}


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The Config of a YAML file, with `key=value` overrides from the command line.

    Another dataset makes the file's inferred keys void. Raises UserError, one line a mistake.
    """
    return make_config(read_values(path, overrides))


def read_values(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The keys that load_config is given, as they stand there."""
    values = _read_mapping(path)
    if "parameters" in values:
        raise UserError(f"{path}: is a job file: python submit_multiple.py {path} -s local")
    changes = _parse_overrides(overrides)
    if changes.get("dataset", values.get("dataset")) != values.get("dataset"):
        values = {key: value for key, value in values.items() if key not in INFERRED_FROM_DATA}
    return {**values, **changes}


def make_config(values: Mapping[str, Any], overrides: Iterable[str] = ()) -> Config:
    """The Config of a mapping, changed by texts such as 'base_lr=1e-3'; a null stands for the
    default. Raises UserError, one line a mistake."""
    values = {str(key): value for key, value in {**values, **_parse_overrides(overrides)}.items()}
    if unknown := [key for key in values if key not in KEYS]:
        lines = []
        for key in unknown[:MOST_LINES]:
            hint = f"; did you mean {near!r}?" if (near := nearest_key(key)) else "."
            named = f"{one_line(key)}={short_repr(values[key])}"
            lines.append(f"{named}: there is no such key{hint} All keys are in src/keys.py")
        raise UserError(_counted(lines, len(unknown)))
    values = {key: value for key, value in values.items() if value is not None}
    if (splits := values.get("data_splits_map")) is not None:
        try:
            splits = evaluate(splits) if isinstance(splits, str) else splits
        except UserError as error:
            raise UserError(f"data_splits_map: {error}") from None
        if not isinstance(splits, dict):
            raise bad_value("data_splits_map", splits, "a mapping from split to split")
        values["data_splits_map"] = {name: x for name, x in splits.items() if x is not None}
    try:
        return Config(**values)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error)) from None


def nearest_key(name: str) -> str | None:
    """The key that is most likely meant by a name that is none."""
    return ALIASES.get(name) or closest(name, KEYS)


def _read_mapping(path: str | Path) -> dict[Any, Any]:
    values = read_yaml_file(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines of the form `key: value`")
    return _without_unknown_nulls(values)


def _without_unknown_nulls(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Of a configuration that a run has saved, without keys of another branch that are null: they
    switch off what this code does not have.

    A run saves every key, host_name as well, which nobody gives by hand. In other files such a key
    is a misspelt one, and reported.
    """
    is_saved = "host_name" in values
    return {k: v for k, v in values.items() if k in KEYS or v is not None or not is_saved}


def _parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """['base_lr=1e-3'] -> {'base_lr': 0.001}; values are YAML."""
    values = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{short_repr(text)}: expected key=value")
        values[key] = read_yaml(value, source=one_line(text))
    return values


def _draw_base_lr(text: str, seed: int) -> float:
    """The number that the expression gives. Raises UserError where it gives none."""
    try:
        value = evaluate(text, rng=np.random.default_rng(seed))
    except UserError as error:
        expected = "expected a number ≥ 0, or an expression that gives one"
        raise UserError(f"base_lr: {error}; {expected}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < np.inf:
        expected = f"an expression that gives a number ≥ 0, not {short_repr(value)}"
        raise bad_value("base_lr", text, expected)
    return float(value)


# ---- Mistakes ----------------------------------------------------------------------------


def _counted(lines: Sequence[str], number: int) -> str:
    """The first lines of so many."""
    more = number - len(lines)
    return "\n".join([*lines, f"… and {more:,} more"] if more else lines)


def _explain(error: pydantic.ValidationError) -> str:
    """One line a key: its value and what each type that it allows expected."""
    expected: dict[str, dict[str, None]] = {}
    values: dict[str, Any] = {}
    for item in error.errors(include_url=False):
        if cause := item.get("ctx", {}).get("error"):  # from __post_init__, which comes last
            return str(cause)
        key, *inside = [str(part) for part in item["loc"]]
        wanted = item["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        if key == "base_lr" and item["type"] == "string_type":
            wanted = "an expression that gives such a number"
        if item["type"] == "list_type":
            given = one_line(item["input"])
            wanted = f"a list, as [{given}]; in a grid [[{given}]]"
        nested = [part for part in inside if part not in KINDS]
        if nested and not any("[" in part for part in nested):
            key = f"{key}[{one_line(nested[0])}]"
        values.setdefault(key, item["input"])
        expected.setdefault(key, {})[wanted] = None
    lines = []
    for key in list(expected)[:MOST_LINES]:
        wanted, value = " or ".join(expected[key]), values[key]
        text = value if isinstance(value, str) else short_repr(value)
        near = closest(text, re.findall(r"'(.*?)'", wanted))
        lines.append(f"{bad_value(key, value, wanted)}" + f"; did you mean {near!r}?" * bool(near))
    return _counted(lines, len(expected))
