"""All settings of one experiment: one flat, frozen dataclass, read from YAML and written back.

The keys stand in src/keys.py.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic

from src.config.expressions import evaluate
from src.config.yaml_files import read_yaml, read_yaml_file, write_yaml
from src.keys import (
    CUDA_GRAPHS,
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
APART = (
    ("fsdp", "averaging", "null"),
    ("fsdp", "channels_last", "false"),
    ("fsdp", "compile", "false"),
    ("fsdp", "precision", "fp32, tf32 or bf16"),
    ("dp", "compile", "false"),
)


@pydantic.dataclasses.dataclass(
    frozen=True, kw_only=True, config=pydantic.ConfigDict(strict=True, extra="forbid")
)
class Config(TrackerKeys, OptimKeys, ModelKeys, AugmentationKeys, DataKeys, Seeds, Bookkeeping):
    """Every key in force. Build it with make_config or load_config, which explain mistakes.

    (Fields come in the order of the bases from right to left.)
    """

    def __post_init__(self) -> None:
        """Contradictions between keys."""
        if self.output_dir == "":
            raise bad_value("output_dir", "", "a folder, or null: nothing is written")
        if "train" not in self.data_splits_map:
            raise bad_value("data_splits_map", self.data_splits_map, "a split named 'train'")
        if self.batch_size % self.grad_accum_steps:
            expected = f"a divisor of batch_size={self.batch_size}"
            raise bad_value("grad_accum_steps", self.grad_accum_steps, expected)
        if self.steps_per_epoch and self.samples_per_epoch:
            raise bad_value(
                "samples_per_epoch", self.samples_per_epoch, "null, as steps_per_epoch is given"
            )
        if self.samples_per_epoch and self.samples_per_epoch < self.batch_size:
            expected = f"at least batch_size={self.batch_size}"
            raise bad_value("samples_per_epoch", self.samples_per_epoch, expected)
        if self.device and not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", self.device):
            raise bad_value("device", self.device, "cpu, cuda, cuda:NUMBER, mps or null")
        for kind, key, expected in APART:
            value = getattr(self, key)
            if self.multi_gpu == kind and value and str(value) not in expected:
                raise bad_value(key, value, f"{expected}, as multi_gpu is {kind}")
        if self.averaging_bn == "recompute" and self.sync_bn:
            expected = "average, as sync_bn is true, and each process recomputes by itself"
            raise bad_value("averaging_bn", self.averaging_bn, expected)
        if self.compile in CUDA_GRAPHS and self.grad_accum_steps > 1:
            expected = "true or max-autotune-no-cudagraphs, as grad_accum_steps is above 1 and CUDA"
            raise bad_value("compile", self.compile, f"{expected} graphs overwrite gradients")
        try:
            re.compile(self.best_checkpoint_metric)
        except re.error as error:
            expected = f"a regular expression ({error})"
            raise bad_value(
                "best_checkpoint_metric", self.best_checkpoint_metric, expected
            ) from None
        if isinstance(self.base_lr, str):
            draw_base_lr(self.base_lr, seed=0)


# What config.yaml holds of one data set has no say about another
INFERRED_FROM_DATA = {"data_n_examples", "data_n_classes", "data_version"}
INFERRED_FROM_DATA |= {"model_output_dim", "model_input_shape"}
# Keys that a run fills in where they are null
INFERRED_KEYS = INFERRED_FROM_DATA | {"batch_size_accum", "max_allowed_loss"}
KEYS = {field.name: field for field in dataclasses.fields(Config)}
MOST_LINES = 20  # of mistakes
MOST_EXPLAINED = 1_000  # the others are counted
MAX_ALLOWED_LOSS = 1e6  # where max_allowed_loss is null, unless the first loss is larger
KINDS = {"bool", "float", "int", "str", "list[str]"}  # of a key that takes several
# What other programs call a key, where spelling alone would lead to a wrong one or none
NAMES_ELSEWHERE = {
    **dict.fromkeys(("epochs", "max_epochs", "n_epochs", "num_epochs"), "train_length"),
    **dict.fromkeys(("learning_rate", "lr"), "base_lr"),
    **dict.fromkeys(("arch", "model_name", "network"), "model"),
    "amp": "precision",
    "gpus": "multi_gpu",
    "optimizer": "optim_alg",
}


# ---- Reading and writing -----------------------------------------------------------------


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The Config of a YAML file, with `key=value` overrides from the command line.

    Another dataset makes the file's found keys void. Raises UserError, one line a mistake.
    """
    return make_config(read_values(path, overrides))


def read_values(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The keys that load_config is given, as they stand there."""
    values = _read_mapping(path)
    if "parameters" in values:
        raise UserError(f"{path}: is a job file: python submit_multiple.py {path} -s local")
    changes = parse_overrides(overrides)
    if changes.get("dataset", values.get("dataset")) != values.get("dataset"):
        values = {key: value for key, value in values.items() if key not in INFERRED_FROM_DATA}
    return {**values, **changes}


def read_saved_config(path: Path) -> Config:
    """The Config that save_config has written. Raises UserError, which names the file."""
    try:
        return make_config(_read_mapping(path))
    except UserError as error:
        words = str(error)
        raise UserError(words if words.startswith(str(path)) else f"{path}: {words}") from None


def _read_mapping(path: str | Path) -> dict[Any, Any]:
    values = read_yaml_file(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines of the form `key: value`")
    return values


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """['base_lr=1e-3'] -> {'base_lr': 0.001}; values are YAML."""
    values = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{short_repr(text)}: expected key=value")
        values[key] = read_yaml(value, source=one_line(text))
    return values


def without_dashes(arguments: Sequence[str]) -> list[str]:
    """What train.py takes, of arguments that are written as options.

    >>> without_dashes(["--lr", "0.1", "--wandb", "seed_model=1"])
    ['base_lr=0.1', 'wandb=true', 'seed_model=1']
    """
    meant, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            meant.append(word)
            continue
        key, equals, value = word.lstrip("-").partition("=")
        key = key.replace("-", "_")
        if key not in KEYS:
            key = NAMES_ELSEWHERE.get(key) or closest(key, KEYS) or key
        is_value_next = rest and not re.match(r"-|[^=]*=|.*\.ya?ml$", rest[0])
        if not equals:
            value = rest.pop(0) if is_value_next else "true"
        meant.append(f"{key}={value}")
    return meant


def make_config(values: Mapping[str, Any]) -> Config:
    """The Config of a mapping; a null stands for the default. Raises UserError."""
    values = {str(key): value for key, value in values.items()}
    if unknown := [key for key in values if key not in KEYS]:
        raise UserError(_lines(unknown, lambda key: _unknown_key(key, values[key])))
    values = {key: value for key, value in values.items() if value is not None}
    if "data_splits_map" in values:
        values["data_splits_map"] = _splits(values["data_splits_map"])
    try:
        return Config(**values)
    except pydantic.ValidationError as error:
        raise UserError(_lines(_explanations(error), str)) from None


def save_config(config: Config, path: Path) -> None:
    """All keys in force, as YAML that load_config reads."""
    write_atomically(path, write_yaml(dataclasses.asdict(config)))


def _lines(mistakes: Sequence[str], explained: Callable[[str], str]) -> str:
    """A line each, of many the first few and how many more there are."""
    lines = [explained(mistake) for mistake in mistakes[:MOST_LINES]]
    more = len(mistakes) - len(lines)
    return "\n".join(lines + [f"… and {more:,} more"] * (more > 0))


def _unknown_key(key: str, value: object) -> str:
    near = NAMES_ELSEWHERE.get(key) or closest(key, KEYS)
    hint = f"; did you mean {near!r}?" if near else "."
    named = f"{one_line(key)}={short_repr(value)}"
    return f"{named}: there is no such key{hint} All keys stand in src/keys.py"


def _splits(value: object) -> object:
    """The mapping of splits, spelled as one or as an expression; null entries dropped."""
    if isinstance(value, str):
        try:
            value = evaluate(value)
        except UserError as error:
            raise UserError(f"data_splits_map: {error}") from None
    if not isinstance(value, dict):
        raise bad_value("data_splits_map", value, "a mapping from split to split")
    return {name: spelled for name, spelled in value.items() if spelled is not None}


def _explanations(error: pydantic.ValidationError) -> list[str]:
    """One line a key: its value and what each type that it allows asked for."""
    expected: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    lines = []
    for item in error.errors(include_url=False)[:MOST_EXPLAINED]:
        if cause := item.get("ctx", {}).get("error"):  # from __post_init__
            lines.append(str(cause))
            continue
        where = [str(part) for part in item["loc"]]
        key = where[0]
        wanted = item["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        if key == "base_lr" and item["type"] == "string_type":
            wanted = "an expression that gives such a number"
        if item["type"] == "list_type":
            given = one_line(item["input"])
            wanted = f"a list, as [{given}]; in a grid [[{given}]]"
        nested = [part for part in where[1:] if part not in KINDS]
        if nested and not any("[" in part for part in nested):
            key = f"{key}[{one_line(nested[0])}]"
        values.setdefault(key, item["input"])
        expected.setdefault(key, [])
        if wanted not in expected[key]:
            expected[key].append(wanted)
    for key, kinds in expected.items():
        if len(lines) >= MOST_LINES:  # it is counted, and not shown
            lines.append("")
            continue
        wanted = " or ".join(kinds)
        value = values[key]
        text = value if isinstance(value, str) else short_repr(value)
        near = closest(text, re.findall(r"'(.*?)'", wanted))
        hint = f"; did you mean {near!r}?" if near else ""
        lines.append(f"{bad_value(key, value, wanted)}{hint}")
    return lines + [""] * max(0, error.error_count() - MOST_EXPLAINED)


# ---- What a run draws --------------------------------------------------------------------


def draw_missing(config: Config, entropy: int | None = None) -> Config:
    """The config with seeds where they were null, a random base_lr drawn, and a loss limit.

    The learning rate is a function of seed_training, so the same seeds give the same run.
    entropy: that the seeds are drawn from; None: the system's.
    """
    seeds = np.random.SeedSequence(entropy).generate_state(2)
    seed_model, seed_training = (int(seed) for seed in seeds)
    drawn: dict[str, Any] = {
        "seed_model": seed_model if config.seed_model is None else config.seed_model,
        "seed_training": seed_training if config.seed_training is None else config.seed_training,
    }
    if config.max_allowed_loss is None:
        drawn["max_allowed_loss"] = MAX_ALLOWED_LOSS
    if isinstance(config.base_lr, str):
        drawn["base_lr"] = draw_base_lr(config.base_lr, drawn["seed_training"])
    return dataclasses.replace(config, **drawn)


def draw_base_lr(text: str, seed: int) -> float:
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
