"""Which runs may share a stack. Imports no torch, as whoever submits needs none."""

import ast
import hashlib
import io
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

from src.config import Config, is_import_path
from src.support import ROOT, UserError

# In these the rows of a stack may differ. A key that is new is none of them: rows that differ in it
# do not share a stack.
BY_ROW = {
    *("output_dir", "save_freq", "save_best_checkpoint", "best_checkpoint_metric"),
    *("keep_checkpoints", "checkpoint_minutes", "keep_state", "save_plot"),
    *("trackers", "wandb", "wandb_project_name", "wandb_run_name", "wandb_tags"),
    *("base_lr", "momentum", "ada_eps", "weight_decay", "weight_decay_biases"),
    *("lr_schedule", "warmup_steps", "clip_norm", "clip_value", "averaging", "label_smoothing"),
    *("seed_model", "model_weights", "model_head_init"),
    *("early_stopping_patience", "max_allowed_loss"),
}
BY_ROW_OF_NETWORKS = BY_ROW | {"optim_alg", "optim_args", "layer_decay"}
OPTIMIZERS = ("sgd", "adam", "adamw", "amsgrad", "amsgradw")
# What the engine does by itself, so that these are not called: a fork that changes them trains
# otherwise, and is refused here. DIGEST is theirs, without comments, docstrings and empty lines.
REPLACED = {
    "train.py": ("Learner", "add_gradients", "train_step", "experiment_generator"),
    "src/losses.py": ("CrossEntropy", "ClassSquaredError", "SquaredError", "BinaryCrossEntropy"),
    "src/models/linear.py": ("Linear",),
    "src/optim/averaging.py": ("AveragedModel",),
}
DIGEST = "1cc646ed1d26a3c3"


def obstacle(config: Config) -> str | None:
    """Why a run cannot be trained in a stack, as `KEY: got …, expected …`; None: it can."""

    def found(key: str, expected: str) -> str:
        return f"{key}: got {getattr(config, key)!r}, expected {expected} with engine=stacked"

    plain = {"precision": "fp32", "compile": False, "model_freeze": [], "profile": None}
    if is_linear(config):
        plain |= {"optim_args": {}, "layer_decay": None}
        if config.loss not in ("log", "xentropy", "mse", "square", "bce"):
            return found("loss", "log, mse or bce")
        if config.optim_alg not in OPTIMIZERS:
            return found("optim_alg", ", ".join(OPTIMIZERS))
        if any(":" in name for name in average_kinds(config)):
            return found("averaging", "ema_G, ema_debiased_G or poly_K")
    else:
        plain |= {"averaging_bn": "average", "channels_last": False}
        if config.model.partition("/")[0] != "tiny" and not is_import_path(config.model):
            return found("model", "linear, linear/no_bias, tiny/NAME or a function of your own")
    for key, expected in plain.items():
        if getattr(config, key) != expected:
            return found(key, repr(expected))
    if config.seed_training is None:  # each run would draw another order
        return found("seed_training", "a number")
    if code_digest() != DIGEST:
        return (
            "engine: got 'stacked', expected 'ordinary', as code was changed that stacks do not "
            "call: see REPLACED in src/stacking/stackable.py"
        )
    return None


def is_linear(config: Config) -> bool:
    """Its stacks are exact; other models are networks, which are stacked by vmap."""
    return config.model.partition("/")[0] == "linear"


def by_row(config: Config) -> set[str]:
    """The keys in which it may differ from others in its stack."""
    return BY_ROW if is_linear(config) else BY_ROW_OF_NETWORKS


def average_kinds(config: Config) -> list[str]:
    names = config.averaging or []
    return [names] if isinstance(names, str) else names


def stack_key(config: Config) -> str:
    """Equal for runs that may share a stack."""
    fixed: dict[str, Any] = {k: v for k, v in asdict(config).items() if k not in by_row(config)}
    fixed["num_averages"] = len(average_kinds(config))
    return repr(sorted(fixed.items()))


def check_stack(configs: Sequence[Config]) -> None:
    """UserError where these runs cannot be trained together."""
    for config in configs:
        if reason := obstacle(config):
            raise UserError(reason)
    first: Mapping[str, Any] = asdict(configs[0])
    for config in configs[1:]:
        if stack_key(config) != stack_key(configs[0]):
            own = asdict(config)
            fixed = [key for key in own if key not in by_row(config)]
            keys = [key for key in fixed if own[key] != first[key]] or ["averaging"]
            raise UserError(
                f"{', '.join(keys)}: {config.output_dir} differs from {configs[0].output_dir}, so "
                "they cannot share a stack"
            )


@cache
def code_digest() -> str:
    """Of REPLACED, the same in every version of Python."""
    digest = hashlib.sha256()
    for path, names in REPLACED.items():
        text = (ROOT / path).read_text()
        lines = text.splitlines()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
        tops = [node for node in ast.parse(text).body if getattr(node, "name", None) in names]
        for node in (node for top in tops for node in ast.walk(top)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
                start, end = node.body[0].lineno, node.body[0].end_lineno or 0
                lines[start - 1 : end] = [""] * (end - start + 1)
        for top in tops:
            code = (line.rstrip() for line in lines[top.lineno - 1 : top.end_lineno])
            digest.update("\n".join(filter(None, code)).encode())
    return digest.hexdigest()[:16]
