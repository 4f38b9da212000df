"""A table of inputs that nobody should have: each is answered in a line, soon and in little memory.

Whatever is in a file or on the command line, the exit code is 0 or 2, there is no traceback,
and beyond `import torch` it takes less than 2 seconds of the processor and 500 MB.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.config import make_config, write_yaml
from train import experiment_generator

ROOT = Path(__file__).parents[1]
MOST_SECONDS = 2.0
MOST_MEGABYTES = 500.0
FOLDER, GONE = object(), object()  # instead of what a file holds
BATCH = f"results/{date.today():%y-%m-%d}-b"


@dataclass(frozen=True)
class Link:
    """A symbolic link instead of a file."""

    to: str


@dataclass(frozen=True)
class Case:
    """words: what the output holds. base: the folder that it begins with, see `bases`."""

    name: str
    command: str  # train, submit, report, json or html
    arguments: Sequence[str] = ()
    files: dict[str, Any] = field(default_factory=dict)
    words: str = ""
    code: int | None = None  # None: 0 or 2
    base: str | None = None


# ---- YAML: as a configuration, as a job file, and as the config.yaml of a row ------------

LONG = "k" * 200_000


def nested_aliases(block: str) -> str:
    lines = ["a: &a " + block.format("{x: 1}")]
    for name, before in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"{name}: &{name} " + block.format(", ".join([f"*{before}"] * 9)))
    return "\n".join(lines)


YAML: list[tuple[str, str | bytes, str]] = [  # name, text, words of the answer
    ("a bomb of aliases", nested_aliases("[{}]"), "values, as what its aliases repeat counts"),
    ("a bomb of merges", nested_aliases("{{<<: [{}]}}"), "values, as what its aliases repeat"),
    ("a bomb of texts", f"a: &a {'x' * 90_000}\nb: [{'*a, ' * 9_999}]", "values, as what its"),
    ("a list that holds itself", "a: &a [*a]", "a: an alias stands inside"),
    ("a mapping that holds itself", "a: &a {b: {c: *a}}", "a: an alias stands inside"),
    ("a merge of itself", "a: &a {<<: *a, b: 1}", "a: an alias stands inside"),
    ("brackets without end", "[" * 100_000, "not YAML"),
    ("braces without end", "{a: " * 100_000, "not YAML"),
    ("dashes without end", "- " * 100_000, "not YAML"),
    ("questions without end", "? " * 100_000, "not YAML"),
    ("lists in lists", "a: " + "[" * 900 + "]" * 900, "nested deeper than 50 levels"),
    ("mappings in mappings", "\n".join(" " * n + "a:" for n in range(900)), "nested deeper"),
    ("200,000 keys", "".join(f"key{n}: {n}\n" for n in range(200_000)), "key0, 0, key1, 1"),
    ("a tag that its text is not of", "model: !!int x", "model: 'x' is no int"),
    ("a tag of floats", "base_lr: !!float fast", "base_lr: 'fast' is no float"),
    ("a tag of booleans", "wandb: !!bool maybe", "wandb: 'maybe' is no bool"),
    ("a tag of dates", "dataset: !!timestamp 2001-01-01", "could not determine a constructor"),
    ("a tag of bytes", "dataset: !!binary aGk=", "could not determine a constructor"),
    ("a tag of Python", "dataset: !!python/object/apply:os.getcwd []", "could not determine"),
    ("a tag without end", f"dataset: !!{LONG} 1", "could not determine a constructor"),
    ("an integer of 5,000 digits", "seed_model: " + "1" * 5_000, "seed_model: a number of 5,000"),
    ("a hexadecimal one", "seed_model: 0x" + "f" * 5_000, "seed_model: a number of 5,002"),
    ("one in sixties", "seed_model: " + "1:" * 50_000 + "1", "seed_model: a number of 100,001"),
    ("a float of 5,000 digits", "base_lr: " + "1" * 5_000 + ".5", "base_lr: a number of 5,002"),
    ("no digits", "batch_size: 0b_", "batch_size: '0b_' is no int"),
    ("an anchor that is not there", "model: *x", "undefined alias"),
    ("a key that is a list", "? [a, b]\n: 1", "unhashable key"),
    ("a key twice", "model: linear\nmodel: linear", "model: set twice"),
    ("a merge of a text", "<<: linear", "expected a mapping"),
    ("two documents", "model: linear\n---\nmodel: linear", "another document"),
    ("no end of a quote", "model: '" + "x" * 100_000, "unexpected end"),
    ("a tab", "\tmodel: linear", "cannot start any token"),
    ("a zero byte", "model: \0", "control characters"),
    ("a bell", "model: \a", "control characters"),
    ("bytes", bytes(range(256)), "not a text file"),
    ("UTF-16", "model: linear".encode("utf-16"), "not a text file"),
    ("nothing", "", ""),
    ("a zero", "0", ""),
    ("a text", "linear", ""),
    ("a list", "- linear", ""),
    ("20 MB of a comment", "#" * 20_000_000, "larger than 16 MB"),
    ("a version of YAML", "%YAML 9.9\n---\nmodel: linear", "incompatible"),
]

# ---- Values: from a configuration, from the command line, and from a job file ------------

MANY = "[" + ", ".join(map(str, range(30_000))) + "]"
VALUES: list[tuple[str, str, str]] = [  # key, value as YAML, words of the answer
    ("dataset", "2001-13-45", "2001-13-45"),
    ("dataset", "2001-01-01T25:00:00Z", "dataset: "),
    ("dataset", "2001-01-01", "dataset: "),
    ("dataset", '""', "dataset: "),
    ("dataset", "{a: 1}", "dataset: got {'a': 1}, expected"),
    ("dataset", '"\\0"', "dataset: "),
    ("dataset", "../../../../etc/passwd", "dataset: "),
    ("dataset", "tests.own_parts:missing", "dataset: "),
    ("dataset", "os:system", "dataset: "),
    ("dataset", "nowhere.at.all:read", "dataset: "),
    ("dataset", f"sklearn/{'x' * 100_000}", "dataset: "),
    ("dataset", f"timm/folder/{'x' * 100_000}", "dataset: "),
    ("dataset", f"hf/csv:{'x' * 5_000}", "dataset: "),
    ("model", '""', "model: "),
    ("model", '"/"', "model: "),
    ("model", '"\\n\\n"', "model: "),
    ("model", '"\\e[2J"', "model: "),
    ("model", LONG, "model: "),
    ("model", "tiny/wrn_4_99999999999999", "model: "),
    ("model", "[linear]", "model: got ['linear'], expected"),
    ("batch_size", "!!int x", "batch_size: 'x' is no int"),
    ("batch_size", "1e400", "batch_size: "),
    ("batch_size", "1e16", "batch_size: got 1e+16, expected less than or equal to"),
    ("batch_size", ".nan", "batch_size: "),
    ("batch_size", "-0", "batch_size: "),
    ("batch_size", '"1"', ""),
    ("batch_size", '"---"', "batch_size: "),
    ("batch_size", '"' + "1" * 5_000 + '"', "batch_size: "),
    ("batch_size", "1:30", ""),
    ("batch_size", "true", "batch_size: got True, expected"),
    ("batch_size", "{}", "batch_size: got {}, expected"),
    ("seed_model", "1" * 5_000, "a number of 5,000 digits"),
    ("seed_model", str(2**63), "seed_model: "),
    ("train_length", "1e308", "train_length: got 1"),
    ("train_length", "-1", "train_length: "),
    ("base_lr", "abc", "base_lr: 'abc', column 1: unknown name; expected a number"),
    ("base_lr", "1e999", "base_lr: "),
    ("base_lr", "10**400", "base_lr: "),
    ("base_lr", '"10.0**400"', "base_lr: "),
    ("base_lr", "9**9**9**9", "base_lr: "),
    ("base_lr", '"' + "(" * 3_000 + '"', "base_lr: "),
    ("base_lr", '"' + "-" * 3_000 + '1"', "base_lr: "),
    ("base_lr", '"' + "1+" * 1_900 + '1"', "base_lr: "),
    ("base_lr", "__import__('os').getcwd()", "base_lr: "),
    ("base_lr", "np.zeros(10**12)", "base_lr: "),
    ("base_lr", '"\\0"', "base_lr: "),
    ("base_lr", LONG, "base_lr: "),
    ("momentum", "0.9,0.99,0.999", "momentum: "),
    ("momentum", "null,null", "momentum: "),
    ("averaging", "ema0.99", "did you mean 'ema_0.99'?"),
    ("averaging", "[[ema]]", "averaging"),
    ("averaging", "[" + "ema, " * 30_000 + "x]", "averaging: "),
    ("averaging", "ema_1e-400_", "averaging: "),
    ("lr_schedule", "step_999999999999999999_0.1", "lr_schedule: got"),
    ("lr_schedule", "step_" + "1," * 50_000 + "1_0.1", ""),
    ("lr_schedule", "poly_nan", "lr_schedule: "),
    ("data_splits_map", '{train: train, val: "train[90%:"}', "the bracket [ is not closed"),
    ("data_splits_map", '{train: "train[5]"}', "cannot read 'train[5]'"),
    ("data_splits_map", '{train: "train[:' + "9" * 5_000 + ']"}', "data_splits_map: "),
    ("data_splits_map", '{train: "train[:' + "9" * 5_000 + '%]"}', "data_splits_map: "),
    ("data_splits_map", '{train: "' + "train+" * 30_000 + 'x"}', "data_splits_map: "),
    ("data_splits_map", "{1: train}", "data_splits_map"),
    ("data_splits_map", '{train: train, "\\n": test}', ""),
    ("data_splits_map", '{train: train, "a/b/c": test}', ""),
    ("data_splits_map", "dict(train=", "data_splits_map: "),
    ("data_splits_map", "[train]", "data_splits_map: got ['train'], expected"),
    ("data_splits_map", f"{{train: train, ? {LONG} : 3}}", "expected string"),
    ("loss_class_weights", MANY, "loss_class_weights"),
    ("loss_class_weights", "[.nan, 1]", "loss_class_weights"),
    ("model_input_shape", "[0]", "model_input_shape"),
    ("model_input_shape", "[99999999, 99999999]", ""),
    ("data_mean", "[1e999]", "data_mean"),
    ("trackers", "wandb", "trackers: got 'wandb', expected a list"),
    ("trackers", MANY, "trackers"),
    ("optim_args", "{lr: 1}", "optim_args"),
    ("optim_args", "[]", "optim_args: got [], expected"),
    ("best_checkpoint_metric", "'('", "best_checkpoint_metric: got '(', expected a regular"),
    ("device", "gpu", "device: got 'gpu', expected cpu, cuda"),
    ("device", "cuda:999999999999", "device: "),
    ("output_dir", "{}", "output_dir: got {}, expected"),
    ("wandb", "2001-01-01", "wandb: got '2001-01-01', expected boolean"),
    (LONG, "1", "there is no such key"),
    ("'a\\nb'", "1", "there is no such key"),
    ("''", "1", "there is no such key"),
]

# ---- What a row's folder may hold --------------------------------------------------------

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
TORN = '{"outcome": "fini'
DAMAGE: list[tuple[str, str, Any]] = [  # name, file, what it holds
    ("deep", "status.json", DEEP),
    ("torn", "status.json", TORN),
    ("a list", "status.json", "[1]"),
    ("wrong types", "status.json", json.dumps({"state": 5, "pid": "x", "updated": [], "host": {}})),
    ("numbers without end", "status.json", '{"seconds_left": 1e999, "pid": ' + "9" * 400 + "}"),
    ("no number", "status.json", '{"progress": NaN, "cost": {"seconds": "x"}, "wasted": 5}'),
    ("a digit too many", "status.json", '{"pid": ' + "9" * 5_000 + "}"),
    ("bytes", "status.json", bytes(range(256))),
    ("a folder", "status.json", FOLDER),
    ("a loop", "status.json", Link("status.json")),
    ("deep", "done", DEEP),
    ("empty", "done", ""),
    ("a list", "done", "[1]"),
    ("wrong types", "done", '{"outcome": [1], "reason": {}, "time": 5, "step": "x"}'),
    ("wrong settings", "done", '{"outcome": "finished", "asked": 5, "in_force": [1]}'),
    ("a folder", "done", FOLDER),
    ("a loop", "done", Link("done")),
    ("empty", "stats.csv", ""),
    ("ragged", "stats.csv", ",train/loss\n0,1\n1,2,3\n2\n"),
    ("a header alone", "stats.csv", ",train/loss,test/last/accuracy\n"),
    ("texts", "stats.csv", ",train/loss,test/last/accuracy\n0,x,y\n"),
    ("a column twice", "stats.csv", ",test/last/accuracy,test/last/accuracy\n0,1,2\n"),
    ("zero bytes", "stats.csv", b"\0" * 1_000),
    ("bytes", "stats.csv", bytes(range(256))),
    ("a line without end", "stats.csv", "," + "x" * 2_000_000 + "\n0,1\n"),
    ("quotes", "stats.csv", '"' * 999 + "\n0,1\n"),
    ("infinities", "stats.csv", ",train/loss,test/last/accuracy\n0,inf,-inf\n1,nan,1e999\n"),
    ("a folder", "stats.csv", FOLDER),
    ("gone", "stats.csv", GONE),
    ("a loop", "config.yaml", Link("config.yaml")),
    ("a folder", "config.yaml", FOLDER),
    ("another's keys", "config.yaml", "base_lr: [1, 2]\nmodel: {a: 1}\nwhat: ever\n"),
    ("dangling", "config.yaml", Link("nowhere")),
    ("a folder", "spec.yaml", FOLDER),
    ("a bomb", "spec.yaml", nested_aliases("[{}]")),
    ("wrong types", "spec.yaml", "[1, 2]"),
    ("deep", "provenance.json", DEEP),
    ("wrong types", "provenance.json", '{"packages": 5, "commit": [], "machine": 1}'),
    ("a folder", "provenance.json", FOLDER),
    ("bytes", "training.log", bytes(range(256)) * 100),
    ("a folder", "training.log", FOLDER),
    ("zero bytes", "job.log", b"\0" * 1_000),
    ("a line without end", "job.log", "x" * 5_000_000),
    ("a folder", "job.log", FOLDER),
    ("a folder", "claim", FOLDER),
    ("dangling", "claim", Link("nowhere")),
    ("a loop", "claim", Link("claim")),
    ("bytes", "claim", bytes(range(256))),
    ("a list", "claim", "[1]"),
    ("a folder", ".backup.1", FOLDER),
    ("a file", "state", "x"),
    ("a loop", "state", Link("state")),
    ("a file", "checkpoints", "x"),
    ("a file", "trackers", "x"),
    ("deep", "attempts.json", DEEP),
    ("wrong types", "attempts.json", '{"attempts": "x"}'),
]
# of the batch itself
BATCH_DAMAGE: list[tuple[str, str, Any]] = [
    ("deep", "rows.jsonl", DEEP),
    ("torn", "rows.jsonl", '{"folder": "000_b'),
    ("empty", "rows.jsonl", ""),
    ("wrong types", "rows.jsonl", '{"folder": 5, "values": []}\n[1]\n5\nnull\n'),
    ("paths", "rows.jsonl", '{"folder": "../../x", "values": {}}\n'),
    ("names without end", "rows.jsonl", json.dumps({"folder": "x" * 300, "values": {}}) + "\n"),
    ("a zero byte", "rows.jsonl", json.dumps({"folder": "a\0b", "values": {}}) + "\n"),
    ("a row twice", "rows.jsonl", '{"folder": "000_b", "values": {}}\n' * 2),
    ("bytes", "rows.jsonl", bytes(range(256))),
    ("a folder", "rows.jsonl", FOLDER),
    ("a loop", "rows.jsonl", Link("rows.jsonl")),
    ("gone", "rows.jsonl", GONE),
    ("a bomb", "job.yaml", nested_aliases("[{}]")),
    ("bytes", "job.yaml", bytes(range(256))),
    ("a folder", "job.yaml", FOLDER),
    ("a loop", "000_b", Link("000_b")),
    ("a file", "000_b", "x"),
    ("gone", "000_b", GONE),
    ("a file", "submissions", "x"),
    ("deep", "submissions/journal.jsonl", DEEP),
    ("wrong types", "submissions/journal.jsonl", '{"call": "x", "state": 5}\n[1]\n5\n'),
    ("bytes", "submissions/journal.jsonl", bytes(range(256))),
    ("a folder", "submissions/journal.jsonl", FOLDER),
    ("wrong types", "submissions/asked.json", '{"script": 5, "extra": 5, "pack": "x"}'),
    ("deep", "submissions/asked.json", DEEP),
    ("a folder", "submissions/asked.json", FOLDER),
    ("deep", "submissions/local.json", DEEP),
    ("wrong types", "submissions/local.json", '{"pid": "x", "rows": 5}'),
    ("a folder", "submissions/local.json", FOLDER),
    ("a file", "code", "x"),
]

# ---- Command lines and job files of their own --------------------------------------------

ONE_KEY = "parameters: {seed_model: 1}"


def crossed(num_keys: int, num_values: int) -> str:
    values = [*range(num_values)]
    return "parameters:\n" + "".join(f"  k{number}: {values}\n" for number in range(num_keys))


JOBS: list[tuple[str, str, str]] = [  # name, text, words
    ("no parameters", "job_details: {name: b}", "expected `parameters:`"),
    ("parameters null", "parameters:", "expected `parameters:`"),
    ("parameters a list", "parameters: [1]", "parameters: got [1], expected a mapping"),
    ("no keys", "parameters: {}", ""),
    ("details a list", "job_details: [1]\n" + ONE_KEY, "job_details: got [1]"),
    ("details unknown", "job_details: {nmae: b}\n" + ONE_KEY, "'nmae'"),
    ("a date as the name", "job_details: {name: 2001-13-45}\n" + ONE_KEY, ""),
    ("a path as the name", "job_details: {name: ../../x}\n" + ONE_KEY, ""),
    ("a name without end", f"job_details: {{name: {LONG}}}\n" + ONE_KEY, ""),
    ("a zero as the name", 'job_details: {name: "\\0"}\n' + ONE_KEY, "name"),
    ("a zero in a path", 'job_details: {output_dir: "\\0"}\n' + ONE_KEY, "output"),
    ("a path without end", f"job_details: {{output_dir: {LONG}}}\n" + ONE_KEY, ""),
    ("a file as output_dir", "job_details: {output_dir: j.yaml}\n" + ONE_KEY, ""),
    ("an empty list", "parameters: {seed_model: []}", "an empty list makes no runs"),
    ("a key that is a number", "parameters: {1: [1]}", "parameters.1"),
    ("a key that is null", "parameters: {null: [1]}", "parameters"),
    ("a key without end", f"parameters: {{? {LONG} : [1]}}", "there is no such key"),
    ("a billion rows", crossed(9, 10), "1,000,000,000 runs"),
    ("rows without end", crossed(5_000, 10), "5,000 keys, expected at most 1,000"),
    ("50,000 keys", crossed(50_000, 1), "50,000 keys, expected"),
    ("5,000 values", "parameters: {seed_model: [" + "x, " * 5_000 + "]}", "equal"),
    (
        "5,000 wrong values",
        f"parameters: {{wandb_project_name: {[*range(5_000)]}}}",
        "wandb_project",
    ),
    ("a LIST of texts", "parameters: {LIST_a: [a, b]}", "parameters.LIST_a[0]"),
    ("a LIST that is none", "parameters: {LIST_a: 5}", "parameters.LIST_a"),
    ("LISTs in LISTs", "parameters: " + "{LIST_a: [" * 20 + "{seed_model: 1}" + "]}" * 20, ""),
    ("LISTs too deep", "parameters: " + "{LIST_a: [" * 40 + "{a: 1}" + "]}" * 40, "nested deeper"),
    (
        "a ZIP that is ragged",
        "parameters: {ZIP_a: {seed_model: [1, 2], batch_size: [1]}}",
        "one length",
    ),
    (
        "a draw of too many",
        "parameters: {base_lr: {uniform: [0, 1], n: 999999999999}}",
        "base_lr.n",
    ),
    (
        "a draw of dates",
        "parameters: {base_lr: {uniform: [2001-01-01, 1], n: 3}}",
        "base_lr.uniform",
    ),
    (
        "a draw without bounds",
        "parameters: {base_lr: {loguniform: [0, .inf], n: 3}}",
        "base_lr.log",
    ),
    ("a draw of a huge seed", "parameters: {base_lr: {uniform: [0, 1], n: 1, seed: 1e99}}", "seed"),
    ("an expression too large", "parameters: {base_lr: '[0] * 10**9'}", "too large"),
    ("an expression of powers", "parameters: {base_lr: '[9**9**9]'}", "too large"),
    ("a key set twice", "parameters: {seed_model: 1, LIST_a: [{seed_model: 2}]}", "set twice"),
    ("output_dir in the grid", "parameters: {output_dir: [a, b]}", "each run gets its own folder"),
]
TRAIN: list[tuple[str, list[str], str]] = [  # name, arguments, words
    ("a file that is not there", ["none.yaml"], "No such file"),
    ("a folder", ["."], "directory"),
    ("a name of 300 characters", ["x" * 300], "File name too long"),
    ("a name with a zero byte", ["a\0b"], "not a text file"),
    ("a device", ["/dev/zero"], "larger than 16 MB"),
    ("an override without a value", ["cfg.yaml", "model"], "'model': expected key=value"),
    ("an override of nothing", ["cfg.yaml", "=1"], "there is no such key"),
    ("an override without end", ["cfg.yaml", "k" * 100_000], "expected key=value"),
    ("a key without end", ["cfg.yaml", "k" * 100_000 + "=1"], "there is no such key"),
    ("a value without end", ["cfg.yaml", "model=" + "x" * 100_000], "model: "),
    ("a bracket", ["cfg.yaml", "model=["], "not YAML"),
    ("bytes that are no text", ["cfg.yaml", "model=\udcff"], "not a text in UTF-8"),
    ("a bomb", ["cfg.yaml", "model=" + nested_aliases("[{}]").replace("\n", "\n\n")], "model="),
    ("a cycle", ["cfg.yaml", "model=&a [*a]"], "an alias stands inside"),
    ("a name of a folder of 300", ["cfg.yaml", "output_dir=" + "x" * 300], "File name too long"),
    ("a folder with a zero byte", ["cfg.yaml", 'output_dir="a\\0b"'], "output_dir"),
    ("a file as the folder", ["cfg.yaml", "output_dir=cfg.yaml"], "output_dir"),
    ("a folder below a file", ["cfg.yaml", "output_dir=cfg.yaml/x"], "output_dir"),
    ("no folder", ["cfg.yaml", "output_dir="], ""),
    ("an empty folder", ["cfg.yaml", "output_dir=''"], "output_dir"),
]

# ---- The table ---------------------------------------------------------------------------

CONFIG = {
    "dataset": "tests.own_parts:read",
    "model": "linear",
    "train_length": 1,
    "save_plot": False,
    "num_workers": 0,
    "system_interval": 0,
    "device": "cpu",
    "seed_model": 1,
    "seed_training": 1,
}
MOST_CHARACTERS = 20_000  # of an answer for people
KINDS = {  # what a name begins with, in parts that take some minutes each
    "configurations": {"a configuration", "an argument"},
    "job files": {"a job file"},
    "runs": {"finished", "unfinished"},
    "rows": {"a row"},
    "batches": {"a batch"},
}
REPORTS = {"report": [], "json": ["--json"], "html": ["--html", "page.html"]}


def table() -> Iterator[Case]:
    settings = {"cfg.yaml": write_yaml(CONFIG)}
    for name, text, words in YAML:
        yield Case(f"a configuration: {name}", "train", ["cfg.yaml"], {"cfg.yaml": text}, words, 2)
        yield Case(f"a job file: {name}", "submit", ["j.yaml"], {"j.yaml": text}, words, 2)
    for key, value, words in VALUES:
        name = f"{key[:30]}: {value[:30]} of {len(value):,}"
        entry, others = f"? {key}\n: {value}\n", {k: v for k, v in CONFIG.items() if k != key}
        files = {"cfg.yaml": write_yaml(others) + entry}
        yield Case(f"a configuration: {name}", "train", ["cfg.yaml"], files, words)
        data = "  dataset: tests.own_parts:read\n" * (key != "dataset")
        files = {"j.yaml": f"parameters:\n{data}  ? {key}\n  :\n    - {value}\n"}
        yield Case(f"a job file: {name}", "submit", ["j.yaml"], files)
    for name, text, words in JOBS:
        yield Case(f"a job file: {name}", "submit", ["j.yaml"], {"j.yaml": text}, words)
    for name, arguments, words in TRAIN:
        yield Case(f"an argument: {name}", "train", arguments, settings, words)
    for name, file, content in DAMAGE:
        for base in ("finished", "unfinished"):
            damage = {f"run/{file}": content}
            yield Case(f"{base}: {name} as {file}", "train", ["cfg.yaml"], damage, base=base)
    of_rows = [*DAMAGE, *((n, "config.yaml", text) for n, text, _ in YAML)]
    for number, (name, file, content) in enumerate(of_rows):
        damage = {f"{BATCH}/000_b/{file}": content}
        yield from of_batch(f"a row: {name} as {file}", damage, number)
    for number, (name, file, content) in enumerate(BATCH_DAMAGE):
        damage = {f"{BATCH}/{file}": content}
        yield from of_batch(f"a batch: {name} as {file}", damage, number)
        if number % EACH == 0:
            again = f"a batch: {name} as {file}: its job file again"
            yield Case(again, "submit", ["results/j.yaml"], damage, base="batch")


def of_batch(name: str, damage: dict[str, Any], number: int) -> Iterator[Case]:
    """The three forms of a report, and the batch taken up again; what takes long of each third."""
    for command in REPORTS:
        if command != "html" or number % EACH == 0:
            yield Case(f"{name}: {command}", command, [BATCH], damage, base="batch")
    if number % EACH == 0:
        yield Case(f"{name}: retried", "submit", ["-r", BATCH], damage, base="batch")


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Folders to damage: a finished run, one that is unfinished, and a batch of two rows."""
    folder = tmp_path_factory.mktemp("bases")
    for name, num_epochs in (("finished", 1), ("unfinished", 2)):
        keys = CONFIG | {"output_dir": str(folder / name / "run"), "train_length": num_epochs}
        (folder / name).mkdir()
        (folder / name / "cfg.yaml").write_text(write_yaml(keys | {"output_dir": "run"}))
        for _ in experiment_generator(make_config(keys)):
            if name == "unfinished":
                break
    batch = folder / "batch" / BATCH
    job = {
        "job_details": {"name": "b", "output_dir": "results"},
        "parameters": {**{k: [v] for k, v in CONFIG.items()}, "seed_model": [1, 2]},
    }
    index = []
    for number in range(2):
        row = batch / f"{number:03d}_b"
        shutil.copytree(folder / "finished" / "run", row)
        index.append({"folder": row.name, "values": CONFIG | {"seed_model": number + 1}})
        for name in ("spec.yaml", "config.yaml"):
            text = (row / name).read_text()
            (row / name).write_text(text.replace("seed_model: 1", f"seed_model: {number + 1}"))
    (batch / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in index))
    for path in (batch / "job.yaml", batch.parent / "j.yaml"):
        path.write_text(write_yaml(job))
    return {name: folder / name for name in ("finished", "unfinished", "batch")}


def made(case: Case, folder: Path, bases: dict[str, Path]) -> Path:
    """The folder that the command is called in."""
    if case.base:
        shutil.copytree(bases[case.base], folder, symlinks=True)
        for spec in folder.glob(f"{BATCH}/*/*.yaml"):  # where it was made, as the rows were
            settings = yaml.safe_load(spec.read_text()) | {"output_dir": str(spec.parent)}
            spec.write_text(write_yaml(settings))
    folder.mkdir(exist_ok=True)
    for name, content in case.files.items():
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is FOLDER:
            path.mkdir()
        elif isinstance(content, Link):
            path.symlink_to(content.to)
        elif content is not GONE:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


MODULES = {"train": "train", "submit": "submit_multiple"} | dict.fromkeys(REPORTS, "report")
# What a command always imports is imported once, before the forks, and added to what each takes.
IMPORTED_BEFORE = ["train", "submit_multiple", "report", "src.analysis.page"]
ADDED = {"submit": ["-d", "-s", "local"]} | REPORTS


def problems(cases: Sequence[Case], folder: Path, bases: dict[str, Path]) -> list[str]:
    """What is wrong with the answers, a line each; what took long is looked at a second time, as
    the cores of a busy machine are slow."""
    folder.mkdir(exist_ok=True)
    calls = [
        [
            str(made(case, folder / str(number), bases)),
            MODULES[case.command],
            [*case.arguments, *ADDED.get(case.command, [])],
        ]
        for number, case in enumerate(cases)
    ]
    done = subprocess.run(
        [sys.executable, "-m", "tests.forks", *IMPORTED_BEFORE],
        cwd=ROOT,
        input=json.dumps(calls),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answers = map(json.loads, done.stdout.splitlines())
    found, late = [], []
    for case, (code, seconds, megabytes, output) in zip(cases, answers, strict=True):
        seconds += seconds_to_import(case.command)
        is_late = seconds > limit_of(case)
        if is_late and folder.name != "again":
            late.append(case)
            continue
        wrong = {
            f"exit code {code}": code not in ((0, 2) if case.code is None else (case.code,)),
            "a traceback": "Traceback" in output,
            f"{seconds:.1f} s": is_late,
            f"{megabytes:.0f} MB": megabytes > MOST_MEGABYTES,
            f"not {case.words!r}": case.words not in output,
            f"{len(output):,} characters": len(output) > MOST_CHARACTERS and case.command != "json",
        }
        if any(wrong.values()):
            words = ", ".join(word for word, is_so in wrong.items() if is_so)
            shown = output if len(output) < 900 else f"{output[:300]} … {output[-500:]}"
            found.append(f"{case.name}: {words}: {shown}")
    return found + (problems(late, folder / "again", bases) if late else [])


def limit_of(case: Case) -> float:
    """Seconds of the processor: more where importing torch takes more, as machines differ."""
    torch_itself = seconds_of("import torch")
    return max(MOST_SECONDS, torch_itself) + torch_itself * (case.command != "train")


@cache
def seconds_to_import(command: str) -> float:
    also = ", src.analysis.page" * (command == "html")
    both = seconds_of(f"import torch, {MODULES[command]}{also}")
    return max(0.0, both - seconds_of("import torch"))


@cache
def seconds_of(program: str) -> float:
    before = os.times()
    subprocess.run([sys.executable, "-c", program], check=True)
    after = os.times()
    then, now = (t.children_user + t.children_system for t in (before, after))
    return now - then


EACH = 3
# One of each kind; the others take minutes.
FEW = (
    "a configuration: a bomb of aliases",
    "an argument: a cycle",
    "finished: wrong types as done",
    "a row: a loop as config.yaml: json",
    "a batch: torn as rows.jsonl: report",
)


def test_a_few_of_the_hostile_inputs_are_answered(tmp_path, bases):
    cases = [case for case in table() if case.name in FEW]
    assert len(cases) == len(FEW)
    assert not problems(cases, tmp_path, bases)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_each_hostile_input_is_answered(kind, tmp_path, bases):
    cases = [case for case in table() if case.name.partition(": ")[0] in KINDS[kind]]
    assert (found := problems(cases, tmp_path, bases)) == [], "\n".join(found)


def test_the_table_is_as_long_as_it_says():
    names = [case.name for case in table()]
    assert len(set(names)) == len(names) >= 200
    assert {name.partition(": ")[0] for name in names} == set().union(*KINDS.values())
