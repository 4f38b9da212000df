"""Every key of an experiment, declared once: type, default, and a comment that gives meaning,
unit, legal values and what null does where that is more than "the default".

Keys marked `found` are filled in by the program and written to config.yaml.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from src.yaml_files import read_yaml


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
