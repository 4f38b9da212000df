"""Train one model: python train.py cfg.yaml [key=value ...]

Every key is in src/keys.py. Other programs put their own logic between the
epochs: `for stats, model in experiment_generator(config): …`.
"""

import sys

if __name__ == "__main__":  # an answer that needs no torch does not wait for it
    from src.config import CommandLine

    CommandLine.answer_early(sys.argv[1:])

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from src.config import Config
from src.losses import Loss, build_loss
from src.models import build_model
from src.optim import (
    AveragedModel,
    build_averaged_models,
    build_optimizer,
    build_schedule,
    evaluated_models,
)
from src.runtime import Metrics, Session, run_command_line
from src.stacking import stacked_generator


@dataclass
class Learner:
    """What is trained, and what trains it.

    Every field that has state_dict() and load_state_dict() is state: it is saved in the state that
    a killed run resumes from, restored from there, and compared by verify_resume.py; so is each
    entry of a dict or a list of such.
    """

    model: nn.Module
    loss: Loss
    averages: dict[str, AveragedModel]  # averaged models, by the names they are evaluated under
    optimizer: Optimizer
    scaler: torch.amp.GradScaler  # of the loss in fp16; in other precisions it does nothing

    def __post_init__(self) -> None:
        # What is trained: the model's parameters, then those of other modules that are stepped.
        own = [p for p in self.model.parameters() if p.requires_grad]
        stepped = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.parameters = list(dict.fromkeys([*own, *stepped]))


def build_learner(run: Session) -> Learner:
    """What is minimised, the model, and what moves its weights."""
    config, data = run.config, run.data
    train_split = data.splits["train"]
    loss = build_loss(
        config.loss,
        n_classes=data.n_classes and config.model_output_dim,  # None for regression
        is_multilabel=train_split.is_multilabel,
        is_text_alone=train_split.predicts_next_token,
        label_smoothing=config.label_smoothing,
        class_weights=config.loss_class_weights,
        loss_args=config.loss_args,
        device=run.device,
    )
    about = data.input_shape, data.n_classes, data.class_names
    # initial_config: without pretrained weights where a saved state will replace them.
    model = run.place(build_model(run.initial_config, *about, run.init_device))
    return Learner(
        model=model,
        loss=loss,
        averages=build_averaged_models(config.averaging, model),
        optimizer=build_optimizer(config, model),
        scaler=run.precision.scaler(),
    )


def add_gradients(
    run: Session, learner: Learner, inputs: Tensor, targets: Tensor, metrics: Metrics | None
) -> None:
    """Add the gradients of the batch's mean loss to those of the parameters.

    A step may call it several times. metrics: None where the batch has been counted.
    """
    # The loss is a sum over examples, scaled by the normalizer of the whole batch: so the
    # gradients of the micro-batches add up to that of the batch, however it is cut.
    scale = run.loss_scale(learner.loss.normalizer(targets), targets.device)
    scale = learner.scaler.scale(scale)
    for x, y in run.micro_batches(inputs, targets):
        outputs = run.forward(x)
        loss_sum = learner.loss(outputs, y)
        loss_sum.backward(scale)
        if metrics is not None:
            metrics.add_batch(loss_sum.detach(), outputs, y)


def train_step(
    run: Session, learner: Learner, inputs: Tensor, targets: Tensor, metrics: Metrics
) -> None:
    """One optimizer step on one batch: inputs (n, *shape), targets (n,) or (n, C).

    metrics.add(name=value) records whatever else is to be seen in the log and in stats.csv, as a
    mean over the epoch. run.step counts the steps before this one.
    """
    config, optimizer, scaler = run.config, learner.optimizer, learner.scaler
    add_gradients(run, learner, inputs, targets, metrics)
    scaler.unscale_(optimizer)  # clipping sees the gradients as they are
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_(learner.parameters, config.clip_norm)
    if config.clip_value is not None:
        nn.utils.clip_grad_value_(learner.parameters, config.clip_value)
    scaler.step(optimizer)
    scaler.update()
    for parameter in learner.parameters:  # as optimizer.zero_grad(), in a tenth of its time
        parameter.grad = None

    for average in learner.averages.values():
        average.update()


def experiment_generator(config: Config) -> Iterator[tuple[pd.DataFrame, nn.Module]]:
    """Train, and yield (stats so far, model) after every epoch.

    A run that was stopped resumes in its folder: only the epochs to come are yielded. Leaving
    early (break, close) saves the state and closes the files; a signal saves it and raises
    StopRequested, a KeyboardInterrupt. Raises UserError where a name in the config does not exist,
    where keys contradict the data, and where the folder holds a finished run.
    """
    if config.engine == "stacked":  # by src/stacking/ instead, to the same numbers but for rounding
        with closing(stacked_generator([config], build_learner)) as stack:
            for (stats,), (model,) in stack:
                yield stats, model
        return

    with Session(config) as run:
        # The data. Keys that were null and follow from the data are filled in: run.config has
        # them from here on.
        run.load_data()
        config = run.config

        learner = build_learner(run)
        model = learner.model
        schedule = build_schedule(
            config.lr_schedule, num_steps=run.num_steps, warmup_steps=config.warmup_steps
        )
        models = {"last": model} | {name: a.model for name, a in learner.averages.items()}
        models = evaluated_models(models, config.evaluate_models)

        # Seeds for training, or the last state that an earlier attempt has saved. The steps that it
        # made after that state are trained again.
        run.restore(learner, evaluated=models)
        if run.is_over:  # training had ended, and that attempt was killed before it closed the run
            with run.callers_turn():
                yield run.stats, model

        for epoch in run.epochs():
            # Train. Batch, augmentation and learning rate are functions of the step's number; what
            # the model draws (dropout) comes of the global generators, which are part of the state.
            # Asking for the next batch counts the step that is done, saves the state if it is time,
            # and stops if a signal came or the loss is out of bounds.
            model.train()
            for inputs, targets in epoch.batches():
                learning_rate = config.base_lr * schedule(run.step)
                for group in learner.optimizer.param_groups:
                    group["lr"] = learning_rate * group.get("lr_scale", 1)
                train_step(run, learner, inputs, targets, epoch.metrics)

            # Evaluate every split with every model, unless the run has diverged. An epoch has no
            # steps only where the whole run has none.
            last = config.base_lr * schedule(run.step - 1) if epoch.steps else 0.0
            results = {"train": {"learning_rate": last}}
            if not run.has_diverged:
                if config.averaging_bn == "recompute":
                    for average in learner.averages.values():
                        run.recompute_batch_norms(average.model)
                results |= run.evaluate()

            # A row of stats, weights if they are asked for, and whether to stop early. Then the
            # caller's turn, after which the state is saved.
            epoch.finish(results)
            with run.callers_turn():
                yield run.stats, model


def run_experiment(config: Config) -> pd.DataFrame:
    """Train to the end; the stats, one row an epoch."""
    for stats, _ in experiment_generator(config):  # noqa: B007 - the last one is wanted
        pass
    return stats


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake of the user's, 130 for
    Ctrl-C, 75 (EX_TEMPFAIL) for Slurm's signals: start it again and it resumes. Errors of the code
    are raised, which is 1."""
    return run_command_line(
        __file__, sys.argv[1:] if arguments is None else arguments, run_experiment
    )


if __name__ == "__main__":
    sys.exit(main())
