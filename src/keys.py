"""Every key of an experiment, declared once: type, default, and a comment that gives meaning,
unit, legal values and what null does where that is more than "the default".

Keys marked `inferred` are filled in by the program and written to config.yaml.
"""

import dataclasses
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from src.config import read_yaml
from src.support import UserError


def _as_number(value: object) -> object:
    """A quoted number counts as a number, and 1000.0 as a whole one."""
    if isinstance(value, str) and re.fullmatch(r"[-+.\deE]{1,99}", value):
        with suppress(UserError):  # it is a text, then
            value = read_yaml(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_as_number)]
Float = Annotated[float, BeforeValidator(_as_number), Field(allow_inf_nan=False)]
MAX_COUNT = 10**15  # of what is counted: it still multiplies without overflow
NonNegativeInt = Annotated[Int, Field(ge=0, le=MAX_COUNT)]
PositiveInt = Annotated[Int, Field(ge=1, le=MAX_COUNT)]
NonNegativeFloat = Annotated[Float, Field(ge=0)]
PositiveFloat = Annotated[Float, Field(gt=0)]
Probability = Annotated[Float, Field(ge=0, le=1)]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
MAX_ALLOWED_LOSS = 1e6  # where max_allowed_loss is null, unless the first loss is larger
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # the modes that record them
Folder = Annotated[str, AfterValidator(os.path.expanduser)]  # ~ is home
Seed = Annotated[Int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True)
class Bookkeeping:
    # optimizer steps between two progress lines of training
    log_interval: PositiveInt = 10
    # batches between two progress lines of an evaluation; null: one line at its end
    log_interval_eval: PositiveInt | None = None
    # keep a checkpoint every so many epochs; 0: none
    save_freq: NonNegativeInt = 0
    # keep the best model so far, by best_checkpoint_metric, as checkpoints/best.pt
    save_best_checkpoint: bool = False
    # regular expression that matches whole columns of stats.csv, or a part of one column's name;
    # of several columns the best counts; decides best and early stopping
    best_checkpoint_metric: str = "test/.*/accuracy"
    # of those checkpoints, the newest so many stay; null: all
    keep_checkpoints: PositiveInt | None = None
    # minutes between two saves of the state that a killed run resumes from
    # (what is saved: src/runtime/train_state.py; when: CheckpointManager in checkpoints.py)
    checkpoint_minutes: PositiveFloat = 10
    # keep that state when the run has ended, so that a longer train_length can resume from it
    keep_state: bool = True
    # record so many training steps, after a few of warm-up, in trace.json.gz (Perfetto opens it)
    # and log the costliest operations; null: none
    profile: PositiveInt | None = None
    # draw curves.png, the learning curves, when the run ends
    save_plot: bool = True
    # seconds between two samples of what the run uses of the machine, in system.csv and as columns
    # system/… of stats.csv; 0: none
    system_interval: NonNegativeFloat = 10
    # the run's folder, ~ is home; null: nothing is written; not given at all: train.py makes one,
    # results/NAME_OF_THE_FILE
    output_dir: Folder | None = None
    # log to the terminal as well
    log_to_stdout: bool = False
    # cpu, cuda, cuda:1, mps; null: cuda where there is one, else cpu
    device: str | None = None
    # inferred
    host_name: str | None = None
    # true: a process a GPU, all that are visible of the node by itself (data of libsvm/… and
    # sklearn/… stay on one), of several nodes by torchrun or srun; fsdp: each holds a slice of the
    # model as well, where it doesn't fit one; dp: torch's DataParallel, one process; false: one GPU
    multi_gpu: Literal["fsdp", "dp"] | bool = True
    # several processes: batch norms take the statistics of the whole batch, not of each shard
    sync_bn: bool = False
    # ordinary: a step at a time, as in train.py; stacked: the same training in which many runs may
    # be one (submit_multiple.py --stack), of linear models by hand-written gradients, of small
    # networks by vmap. The two agree to rounding; a run is resumed by the one that began it
    engine: Literal["ordinary", "stacked"] = "ordinary"
    # floats of matrix products and convolutions: fp32 (torch's own, in which convolutions of
    # NVIDIA's GPUs since Ampere round to tf32), tf32 (products as well), bf16, fp16 with a scaled
    # loss; weights, optimizer, losses, sums and products of sparse rows are float32 in each
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    # torch.compile of the network for full batches; true is its mode default; reduce-overhead and
    # max-autotune record CUDA graphs. Where it can't be done, a warning says so and nothing changes
    compile: CompileMode | bool = False
    # weights and batches of images with the channels innermost: faster convolutions on GPUs
    channels_last: bool = False
    # processes that load data which do not fit in memory; 0: the training process itself
    num_workers: NonNegativeInt = 2
    # examples in a batch of an evaluation; null: batch_size
    eval_batch_size: PositiveInt | None = None
    # which of last, av, av2, … are evaluated, as a list; null: all
    evaluate_models: list[str] | None = None
    # a training loss that is larger, infinite or NaN ends the run as diverged; null: 1e6, or 10
    # times the loss of the first step where that is larger; written to config.yaml
    max_allowed_loss: Annotated[float, BeforeValidator(_as_number), Field(gt=0)] | None = None
    # epochs without a new best before the run stops; null: never
    early_stopping_patience: PositiveInt | None = None


@dataclass(frozen=True)
class Seeds:
    # initialisation of the model; null: one is drawn and written to config.yaml
    seed_model: Seed | None = None
    # batch order, augmentation, dropout, a random base_lr; null: one is drawn and written to
    # config.yaml
    seed_training: Seed | None = None


@dataclass(frozen=True)
class DataKeys:
    # family/name: sklearn/digits, libsvm/a9a, timm/torch/cifar10, timm/folder/PATH, timm/tar/PATH,
    # tfds/mnist, hf/NAME, hf/csv:PATH; or a custom function, my_data.spirals:read
    dataset: str = "libsvm/a9a"
    # folder where data sets live
    data_dir: Folder = "data"
    # whether a missing data set may be downloaded
    data_download: bool = True
    # inferred: split -> number of examples
    data_n_examples: dict[str, int] | None = None
    # inferred, or given where the data do not show all classes
    data_n_classes: PositiveInt | None = None
    # our name of a split -> the data set's (train[:90%]); null leaves a split out; a string is an
    # expression: dict(train="train[:90%]", val="train[90%:]"); of another data set: tfds/x:test
    data_splits_map: dict[str, str] = dataclasses.field(
        default_factory=lambda: {"train": "train", "test": "test"}
    )
    # rows: each example to length 1; columns: each feature to mean 0 and variance 1
    # on the training split; none; null: the family's own (libsvm: rows)
    data_normalize: Literal["rows", "columns", "none"] | None = None
    # a number per channel for pixels in 0…1; null: the pretrained model's, else the data set's
    data_mean: list[Float] | None = None
    data_std: list[PositiveFloat] | None = None
    # side of the centre crop over the side of the resized image, in training too unless it crops
    # at random by aug_crop_scale; null: the pretrained model's, else 1
    data_crop_pct: Annotated[Float, Field(gt=0, le=1)] | None = None
    # how images are resized; null: the pretrained model's, else bilinear
    data_interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    # inferred, or given: the version of a data set of TFDS, the revision of one of the hub; not of
    # those that other splits come from
    data_version: str | None = None
    # names of the classes in their order, or imagenet; null: the data set's own
    data_class_names: list[str] | Literal["imagenet"] | None = None
    # for splits of other data sets: split -> {its class: ours}, names or numbers; a class that
    # maps to null is left out; null: by name
    data_class_map: dict[str, dict[str | Int, str | Int | None]] | None = None
    # hf/…: the columns of a table, or the one of text; null: all but the target, or text
    data_input_columns: list[str] | None = None
    # hf/…: the column of classes or real targets; null: label, labels, target, …
    data_target_column: str | None = None
    # texts: the tokenizer, a name of the hub or a folder; null: the model's
    data_tokenizer: str | None = None
    # tokens of an example at most, of a longer text the first; null: what the model takes, at
    # most 1024, or 512
    data_text_length: PositiveInt | None = None
    # loss next_token: join the texts and cut them into examples of data_text_length tokens;
    # false: each text is an example
    data_text_pack: bool = True
    # of texts with classes: batches of about the same length, less padding, a little less random
    data_group_by_length: bool = False
    # hold images as bytes on the device, and augment them there, in batches: no workers are needed.
    # For small images without aug_crop_scale, aug_auto and aug_color_jitter. auto: where that is
    # so and they take at most a quarter of the free memory; written to config.yaml as true or
    # false. Augmentation then draws other numbers of the same distributions
    data_on_device: Literal["auto"] | bool = False
    # leave out the last batch of a pass where it is short
    drop_last: bool = False


@dataclass(frozen=True)
class AugmentationKeys:
    """Of training examples. Images that are read one at a time take all of it; images in memory,
    arrays (channels, height, width), all but aug_crop_scale, aug_auto and aug_color_jitter; other
    dense examples aug_noise, aug_mixup and copies; any aug_function. Mixing needs one class an
    example. Everything is off by default."""

    # pixels added around an image before a random crop of the size that it had; CIFAR: 4. They are
    # black; around arrays that data_normalize or data_mean has shifted, the mean
    aug_pad_crop: NonNegativeInt = 0
    # instead, a random part of the image, resized: its fraction of the area; ImageNet: [0.08, 1]
    aug_crop_scale: list[PositiveFloat] | None = None
    # its width over its height, from and to
    aug_crop_ratio: list[PositiveFloat] = dataclasses.field(default_factory=lambda: [3 / 4, 4 / 3])
    # probability of a flip, left to right and top to bottom
    aug_hflip: Probability = 0.0
    aug_vflip: Probability = 0.0
    # a policy of timm: rand-m9-mstd0.5-inc1, original, v0, 3a, augmix-m3-w3; null: none.
    # Colours are moved beside it where aug_color_jitter says so
    aug_auto: str | None = None
    # how far brightness, contrast and saturation are moved; 0: not at all
    aug_color_jitter: NonNegativeFloat = 0.0
    # standard deviation of the Gaussian noise added to each number, after it is normalised
    aug_noise: NonNegativeFloat = 0.0
    # probability that a rectangle is erased, and what it is filled with: the mean (of arrays 0),
    # one random colour, or one a pixel; colours are standard normal, after normalisation
    aug_erase: Probability = 0.0
    aug_erase_mode: Literal["const", "rand", "pixel"] = "pixel"
    # parameters of the Beta distributions by which two examples of a batch are mixed, or a part
    # of one image is pasted into another; 0: neither. Where both are given, a batch takes one
    aug_mixup: NonNegativeFloat = 0.0
    aug_cutmix: NonNegativeFloat = 0.0
    # fraction of the batches that are mixed, and where both are given of those that are cut
    aug_mix_prob: Probability = 1.0
    aug_mix_switch_prob: Probability = 0.5
    # so many differently augmented copies of an example in a batch; a pass is as long as ever, and
    # sees one of aug_repeats examples
    aug_repeats: PositiveInt = 1
    # a function of your own, my_augmentation:noise: it is called with (inputs, targets) of each
    # training batch, on the device and before mixup and cutmix, and returns such a pair. What it
    # draws is a function of seed_training and the step. null: none
    aug_function: str | None = None


@dataclass(frozen=True)
class ModelKeys:
    # family/name: linear, linear/no_bias, tiny/lenet, tiny/wrn_40_2, timm/resnet50,
    # torchvision/resnet50, clip/vit_b32, hf/NAME; or a custom function, my_nets.wide:build
    model: str = "linear/no_bias"
    # start from the weights that the family offers
    model_pretrained: bool = False
    # start from this file of weights (.pt, .safetensors); a head of another shape is left out, and
    # of a checkpoint of other code what fits is taken, a warning names the rest
    model_weights: str | None = None
    # how the last layer starts: zero, rand; zero_shot: from the names of the classes (clip/…);
    # null: the model's own way
    model_head_init: Literal["zero", "rand", "zero_shot"] | None = None
    # sentences with {} for the class, or open_clip's: simple (7), openai (80)
    model_zero_shot_templates: list[str] | Literal["simple", "openai"] = "simple"
    # a regular expression or several; parameters whose whole name matches keep their values
    model_freeze: str | list[str] = dataclasses.field(default_factory=list)
    # inferred from data_n_classes, or given
    model_output_dim: PositiveInt | None = None
    # inferred from the pretrained model or the data, or given: [channels, height, width]
    model_input_shape: list[PositiveInt] | None = None
    # log = xentropy; mse = square; bce for several labels an example; next_token: of texts; or your
    # own, a subclass of Loss of src/losses.py or a function that gives one, my_losses:Focal
    loss: str = "log"
    # further arguments of a loss: {temperature: 0.1}
    loss_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    # what evaluations measure beside the loss and the accuracy: top5_accuracy, class_accuracy,
    # confusion, or custom functions, my_metrics.robust:robust_accuracy (src/metrics.py)
    metrics: list[str] = dataclasses.field(default_factory=list)
    # fraction of the target spread over all classes, 0…1; cross-entropy only, evaluations' too
    label_smoothing: Annotated[Float, Field(ge=0, lt=1)] = 0.0
    # one weight a class, cross-entropy only, evaluations' too; null: all count the same
    loss_class_weights: list[NonNegativeFloat] | None = None


@dataclass(frozen=True)
class OptimKeys:
    # examples per optimizer step
    batch_size: PositiveInt = 100
    # micro-batches per step; must divide batch_size
    grad_accum_steps: PositiveInt = 1
    # inferred: batch_size / grad_accum_steps
    batch_size_accum: PositiveInt | None = None
    # length of the run in train_length_unit
    train_length: Annotated[Int | Float, Field(ge=0, le=MAX_COUNT)] = 100
    train_length_unit: Literal["epoch", "step", "sample"] = "epoch"
    # redefine "epoch", the interval between evaluations; at most one of the two
    steps_per_epoch: PositiveInt | None = None
    samples_per_epoch: PositiveInt | None = None
    # sgd (Nesterov where momentum > 0), adam, adamw, amsgrad, amsgradw, timm/NAME; or your own,
    # my_optimizers:DoG, a class that is given what the table of src/optim/optimizers.py says
    optim_alg: str = "sgd"
    # further arguments of the optimizer: {eps: 1e-6}
    optim_args: dict[str, Any] = dataclasses.field(default_factory=dict)
    # learning rate; a string is an expression and may draw: '10 ** np.random.uniform(-3, 0)'
    base_lr: NonNegativeFloat | str = 1.0
    # a number, for the Adam family also 'beta1,beta2'; one number means beta2 = 0.999
    momentum: Float | str = 0.9
    ada_eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    # for every parameter with `bias` in its name
    weight_decay_biases: NonNegativeFloat = 0.0
    # gradients are scaled down to this norm; null: never
    clip_norm: PositiveFloat | None = None
    # each entry of the gradients is cut to ± this value; null: never
    clip_value: PositiveFloat | None = None
    # each layer's learning rate is that of the next one times this, as timm groups layers; null: 1
    layer_decay: Annotated[Float, Field(gt=0, le=1)] | None = None
    # constant, cosine (over the whole run), cosine_after_warmup (over what the warm-up leaves),
    # poly, poly_P, step, step_N_F, step_a,b,c_F (src/optim/schedules.py); or a function of your
    # own, my_schedules:triangle, which takes the number of steps and gives a function of the step
    lr_schedule: str = "constant"
    # steps of linear warm-up, which multiplies the schedule: 1/warmup_steps at the first step
    warmup_steps: NonNegativeInt = 0
    # ema_G, ema_debiased_G (without the initial weights), poly_K; my_averages:tail, a function of
    # your own that gives c(t), or a subclass of AveragedModel (src/optim/averaging.py); or a list
    # of such names, evaluated as av, av2, …; null: none
    averaging: str | list[str] | None = None
    # statistics of batch norms in averaged models: average, as the weights; recompute, before each
    # evaluation: the means over batches of all training data, not augmented, a forward pass
    averaging_bn: Literal["average", "recompute"] = "average"


@dataclass(frozen=True)
class TrackerKeys:
    # wandb, comet, tensorboard, trackio: any number of them, logged to beside stats.csv; wandb
    # and comet offline where there are no credentials (`python report.py sync` sends it later)
    trackers: list[Literal["wandb", "comet", "tensorboard", "trackio"]] = dataclasses.field(
        default_factory=list
    )
    # the same as wandb among the trackers
    wandb: bool = False
    # project, name and tags of the run, for each tracker; null: experiments, the folder's name
    wandb_project_name: str | None = None
    wandb_run_name: str | None = None
    wandb_tags: list[str] = dataclasses.field(default_factory=list)


# What config.yaml holds of one data set has no say about another.
INFERRED_FROM_DATA = {"data_n_examples", "data_n_classes", "data_version"}
INFERRED_FROM_DATA |= {"model_output_dim", "model_input_shape"}
# Keys that a run fills in where they are null
INFERRED_KEYS = INFERRED_FROM_DATA | {"batch_size_accum", "max_allowed_loss"}
