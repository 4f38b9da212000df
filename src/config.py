"""All settings of one experiment: one flat, frozen dataclass, read from YAML and written back.

Every key is declared once, here: type, default, and a comment that gives meaning,
unit, legal values and what null does where that is more than "the default".
Keys marked `found` are filled in by the program and written to config.yaml.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import BeforeValidator, Field

from src.expressions import ExpressionError, evaluate
from src.files import write_atomically
from src.names import UserError, bad_value, closest
from src.yaml_files import read_yaml, read_yaml_file, write_yaml


def _as_number(value: object) -> object:
    """A quoted number counts as a number, and 1000.0 as a whole one."""
    if isinstance(value, str):
        value = read_yaml(value) if re.fullmatch(r"[-+.\deE]+", value) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_as_number)]
Number = Annotated[float, BeforeValidator(_as_number), Field(allow_inf_nan=False)]
AtLeast0 = Annotated[Whole, Field(ge=0)]
AtLeast1 = Annotated[Whole, Field(ge=1)]
NotNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class Bookkeeping:
    # optimizer steps between two progress lines of training
    log_interval: AtLeast1 = 10
    # batches between two progress lines of an evaluation; null: one line at its end
    log_interval_eval: AtLeast1 | None = None
    # keep a checkpoint every so many epochs; 0: none
    save_freq: AtLeast0 = 0
    # keep the best model so far, by best_checkpoint_metric, as checkpoints/best.pt
    save_best_checkpoint: bool = False
    # regular expression that matches whole columns of stats.csv; decides best and early stopping
    best_checkpoint_metric: str = "test/.*/accuracy"
    # of those checkpoints, the newest so many stay; null: all
    keep_checkpoints: AtLeast1 | None = None
    # minutes between two saves of the state that a killed run goes on from (src/engine/state.py)
    checkpoint_minutes: Positive = 10
    # keep that state when the run has ended, so that a longer train_length can go on from it
    keep_state: bool = True
    # draw curves.png, the learning curves, when the run ends
    save_plot: bool = True
    # the run's folder; null: nothing is written
    output_dir: str | None = None
    # log to the terminal as well
    log_to_stdout: bool = False
    # cpu, cuda, cuda:1, mps; null: cuda where there is one, else cpu
    device: str | None = None
    # found
    host_name: str | None = None
    # spread each batch of images over all visible GPUs of the node; arrays stay on one
    multi_gpu: bool = True
    # processes that load data which do not fit in memory; 0: the training process itself
    num_workers: AtLeast0 = 2
    # examples in a batch of an evaluation; null: batch_size
    eval_batch_size: AtLeast1 | None = None
    # which of last, av, av2, … are evaluated, as a list; null: all
    evaluate_models: list[str] | None = None
    # a larger or NaN training loss ends the run as diverged
    max_allowed_loss: Annotated[float, BeforeValidator(_as_number), Field(gt=0)] = 1e6
    # epochs without a new best before the run stops; null: never
    early_stopping_patience: AtLeast1 | None = None


@dataclass(frozen=True)
class Seeds:
    # initialisation of the model; null: one is drawn and written to config.yaml
    seed_model: Seed | None = None
    # batch order, augmentation, dropout, a random base_lr; null: as above
    seed_training: Seed | None = None


@dataclass(frozen=True)
class DataKeys:
    # family/name: sklearn/digits, libsvm/a9a, timm/torch/cifar10, timm/folder/PATH; or a
    # function of one's own, my_data.spirals:read
    dataset: str = "libsvm/a9a"
    # folder where data sets live
    data_dir: str = "data"
    # whether a missing data set may be downloaded
    data_download: bool = True
    # found: split -> number of examples
    data_n_examples: dict[str, int] | None = None
    # found, or given where the data do not show all classes
    data_n_classes: AtLeast1 | None = None
    # our name of a split -> the data set's (train[:90%]); null leaves a split out;
    # a string is an expression: dict(train="train[:90%]", val="train[90%:]")
    data_splits_map: dict[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "train", "test": "test"}
    )
    # rows: each example to length 1; columns: each feature to mean 0 and variance 1
    # on the training split; none; null: the family's own (libsvm: rows)
    data_normalize: Literal["rows", "columns", "none"] | None = None
    # a number per channel for pixels in 0…1; null: the pretrained model's, else the data set's
    data_mean: list[Number] | None = None
    data_std: list[Positive] | None = None
    # leave out the last batch of a pass where it is short
    drop_last: bool = False


@dataclass(frozen=True)
class ModelKeys:
    # family/name: linear, linear/no_bias, tiny/lenet, tiny/wrn_40_2, timm/resnet50,
    # torchvision/resnet50; or a function of one's own, my_nets.wide:build
    model: str = "linear/no_bias"
    # start from the weights that the family offers
    model_pretrained: bool = False
    # start from this file of weights (.pt, .safetensors); a head of another shape is left out
    model_weights: str | None = None
    # how the last layer starts: zero, rand; null: the model's own way
    model_head_init: Literal["zero", "rand"] | None = None
    # found from data_n_classes, or given
    model_output_dim: AtLeast1 | None = None
    # found from the pretrained model or the data, or given: [channels, height, width]
    model_input_shape: list[AtLeast1] | None = None
    # log = xentropy; mse = square; bce for several labels an example
    loss: str = "log"
    # share of the target spread over all classes, 0…1; cross-entropy only
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    # one weight a class, cross-entropy only; null: all count the same
    loss_class_weights: list[NotNegative] | None = None


@dataclass(frozen=True)
class OptimKeys:
    # examples per optimizer step
    batch_size: AtLeast1 = 100
    # micro-batches per step; must divide batch_size
    grad_accum_steps: AtLeast1 = 1
    # found: batch_size / grad_accum_steps
    batch_size_accum: AtLeast1 | None = None
    # length of the run in train_length_unit
    train_length: Annotated[Whole | Number, Field(ge=0)] = 100
    train_length_unit: Literal["epoch", "step", "sample"] = "epoch"
    # redefine "epoch", the interval between evaluations; at most one of the two
    steps_per_epoch: AtLeast1 | None = None
    samples_per_epoch: AtLeast1 | None = None
    # sgd (Nesterov where momentum > 0), adam, adamw, amsgrad, amsgradw, timm/NAME
    optim_alg: str = "sgd"
    # further arguments of the optimizer: {eps: 1e-6}
    optim_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    # learning rate; a string is an expression and may draw: '10 ** np.random.uniform(-3, 0)'
    base_lr: NotNegative | str = 1.0
    # a number, for the Adam family also 'beta1,beta2'; one number means beta2 = 0.999
    momentum: Number | str = 0.9
    ada_eps: NotNegative = 1e-8
    weight_decay: NotNegative = 0.0
    # for every parameter with `bias` in its name
    weight_decay_biases: NotNegative = 0.0
    # gradients are scaled down to this norm; null: never
    clip_norm: Positive | None = None
    # each entry of the gradients is cut to ± this value; null: never
    clip_value: Positive | None = None
    # constant, cosine, poly, poly_P, step, step_N_F, step_a,b,c_F (src/optim/schedules.py)
    lr_schedule: str = "constant"
    # steps of linear warm-up
    warmup_steps: AtLeast0 = 0
    # ema_G, poly_K, or a list of them, evaluated as av, av2, …; null: none
    averaging: str | list[str] | None = None


@dataclass(frozen=True)
class WandbKeys:
    wandb: bool = False
    wandb_project_name: str | None = None
    wandb_run_name: str | None = None
    wandb_tags: list[str] = dataclasses.field(default_factory=list)


@pydantic.dataclasses.dataclass(
    frozen=True, kw_only=True, config=pydantic.ConfigDict(strict=True, extra="forbid")
)
class Config(WandbKeys, OptimKeys, ModelKeys, DataKeys, Seeds, Bookkeeping):
    """Every key in force. Build it with make_config or load_config, which explain mistakes.

    (Fields come in the order of the bases from right to left.)
    """

    def __post_init__(self) -> None:
        """Contradictions between keys."""
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
        if self.device and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", self.device):
            raise bad_value("device", self.device, "cpu, cuda, cuda:NUMBER, mps or null")
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
FOUND_IN_DATA = {"data_n_examples", "data_n_classes", "model_output_dim", "model_input_shape"}
KEYS = {field.name: field for field in dataclasses.fields(Config)}


# ---- Reading and writing -----------------------------------------------------------------


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The Config of a YAML file, with `key=value` overrides from the command line.

    Another dataset makes the file's found keys void. Raises UserError, one line a mistake.
    """
    values = read_yaml_file(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines of the form `key: value`")
    if "parameters" in values:
        raise UserError(f"{path}: is a job file: python submit_multiple.py {path} -s local")
    changes = parse_overrides(overrides)
    if changes.get("dataset", values.get("dataset")) != values.get("dataset"):
        values = {key: value for key, value in values.items() if key not in FOUND_IN_DATA}
    return make_config({**values, **changes})


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """['base_lr=1e-3'] -> {'base_lr': 0.001}; values are YAML."""
    values = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{text!r}: expected key=value")
        values[key] = read_yaml(value, source=text)
    return values


def make_config(values: Mapping[str, Any]) -> Config:
    """The Config of a mapping; a null stands for the default. Raises UserError."""
    values = {str(key): value for key, value in values.items()}
    if unknown := [key for key in values if key not in KEYS]:
        raise UserError("\n".join(_unknown_key(key, values[key]) for key in unknown))
    values = {key: value for key, value in values.items() if value is not None}
    if "data_splits_map" in values:
        values["data_splits_map"] = _splits(values["data_splits_map"])
    try:
        return Config(**values)
    except pydantic.ValidationError as error:
        raise UserError("\n".join(_explanations(error))) from None


def save_config(config: Config, path: Path) -> None:
    """All keys in force, as YAML that load_config reads."""
    write_atomically(path, write_yaml(dataclasses.asdict(config)))


def _unknown_key(key: str, value: object) -> str:
    near = closest(key, KEYS)
    hint = f"; did you mean {near!r}?" if near else "."
    return f"{key}={value!r}: there is no such key{hint} All keys stand in src/config.py"


def _splits(value: object) -> object:
    """The mapping of splits, spelled as one or as an expression; null entries dropped."""
    if isinstance(value, str):
        try:
            value = evaluate(value)
        except ExpressionError as error:
            raise UserError(f"data_splits_map: {error}") from None
    if not isinstance(value, dict):
        raise bad_value("data_splits_map", value, "a mapping from split to split")
    return {name: spelled for name, spelled in value.items() if spelled is not None}


def _explanations(error: pydantic.ValidationError) -> list[str]:
    """One line a key: its value and what each type that it allows asked for."""
    expected: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    lines = []
    for item in error.errors(include_url=False):
        if cause := item.get("ctx", {}).get("error"):  # from __post_init__
            lines.append(str(cause))
            continue
        where = [str(part) for part in item["loc"]]
        key = where[0]
        wanted = item["msg"].removeprefix("Input should be ").removeprefix("a valid ")
        nested = [part for part in where[1:] if part not in ("float", "int", "str", "list[str]")]
        if nested and not any("[" in part for part in nested):
            key = f"{key}[{nested[0]}]"
        values.setdefault(key, item["input"])
        if near := closest(str(item["input"]), re.findall(r"'(.*?)'", wanted)):
            wanted += f"; did you mean {near!r}?"
        expected.setdefault(key, [])
        if wanted not in expected[key]:
            expected[key].append(wanted)
    return lines + [str(bad_value(k, values[k], " or ".join(e))) for k, e in expected.items()]


# ---- What a run draws --------------------------------------------------------------------


def draw_missing(config: Config) -> Config:
    """The config with its seeds drawn where they were null, and a random base_lr drawn.

    The learning rate is a function of seed_training, so the same seeds give the same run.
    """
    entropy = np.random.SeedSequence()
    seed_model, seed_training = (int(s) for s in entropy.generate_state(2))
    drawn: dict[str, Any] = {
        "seed_model": seed_model if config.seed_model is None else config.seed_model,
        "seed_training": seed_training if config.seed_training is None else config.seed_training,
    }
    if isinstance(config.base_lr, str):
        drawn["base_lr"] = draw_base_lr(config.base_lr, drawn["seed_training"])
    return dataclasses.replace(config, **drawn)


def draw_base_lr(text: str, seed: int) -> float:
    """The number that the expression gives. Raises UserError where it gives none."""
    try:
        value = evaluate(text, rng=np.random.default_rng(seed))
    except ExpressionError as error:
        raise UserError(f"base_lr: {error}") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise bad_value("base_lr", text, f"an expression that gives a number ≥ 0, not {value!r}")
    return float(value)
