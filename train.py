"""Train one model: python train.py cfg.yaml [key=value ...]

Every key stands in src/keys.py. Other programs put their own logic between the
epochs: `for stats, model in experiment_generator(config): …`.
"""

import argparse
import platform
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from time import perf_counter

import pandas as pd
import torch
from loguru import logger
from torch import Tensor, nn
from torch.optim import Optimizer

from src.analysis.run_plot import save_learning_curves
from src.config import Config, draw_missing, load_config
from src.data.build import build_data, build_loading
from src.data.loaders import evaluation_batches, micro_batches, on_device, training_batches
from src.data.splits import DatasetSplit, has_several_labels, is_text_alone
from src.durations import Timeline
from src.engine.checkpoint import prune, save_weights
from src.engine.evaluation import Sums, evaluate
from src.engine.runtime import pick_device, spread_over_gpus
from src.engine.saving import Saver
from src.engine.signals import Signals, StopRequested
from src.engine.state import State
from src.engine.state_files import StateFiles
from src.engine.stopping import Best, has_diverged
from src.generators import generators_kept, seed_everything
from src.losses import Loss, build_loss
from src.metrics import metric_columns
from src.models.build import build_model, model_preprocessing, output_dim
from src.names import UserError
from src.optim.averaging import Average, build_averages, evaluated_models
from src.optim.build import build_optimizer
from src.optim.schedules import build_schedule
from src.record.console import Progress, log_setup
from src.record.run_folder import RunFolder
from src.record.same_run import (
    check_same_data,
    check_same_epochs,
    continued,
    is_finished,
    is_longer,
)
from src.record.stats import Stats, read_stats, summary


@dataclass
class Learner:
    """What a training step changes, and how."""

    model: nn.Module
    forward: nn.Module  # the model as it is called: itself, or spread over GPUs
    loss: Loss
    optimizer: Optimizer
    averages: dict[str, Average]
    micro_batch_size: int
    clip_norm: float | None
    clip_value: float | None

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]


def update(learner: Learner, inputs: Tensor, targets: Tensor, sums: Sums) -> None:
    """One optimizer step on one batch: inputs (n, *shape), targets (n,) or (n, C)."""
    # The loss is a sum over examples, scaled by the weight of the whole batch: so the
    # gradients of the micro-batches add up to that of the batch, however it is cut.
    scale = torch.as_tensor(1 / learner.loss.weight(targets), device=targets.device)
    for x, y in micro_batches(inputs, targets, learner.micro_batch_size):
        outputs = learner.forward(x)
        loss_sum = learner.loss(outputs, y)
        loss_sum.backward(scale)
        sums.add(loss_sum.detach(), outputs, y)

    if learner.clip_norm is not None:
        nn.utils.clip_grad_norm_(learner.parameters, learner.clip_norm)
    if learner.clip_value is not None:
        nn.utils.clip_grad_value_(learner.parameters, learner.clip_value)
    learner.optimizer.step()
    for parameter in learner.parameters:  # optimizer.zero_grad() at a tenth of its time
        parameter.grad = None

    for average in learner.averages.values():
        average.update()


def experiment_generator(config: Config) -> Iterator[tuple[pd.DataFrame, nn.Module]]:
    """Train, and yield (stats so far, model) after every evaluation.

    A run that was stopped goes on in its folder: only the epochs to come are yielded. Leaving
    early (break, close) closes the files. Raises UserError where a name in the config does not
    exist or keys contradict the data.
    """
    with (
        Signals() as signals,
        RunFolder(
            config.output_dir, log_to_terminal=config.log_to_stdout, is_longer=is_longer(config)
        ) as folder,
        Progress() as progress,
        ExitStack() as resources,
    ):
        # An earlier attempt is continued. Else what is null is drawn or found here, once, and
        # written to config.yaml: running that file is running this experiment again.
        files = StateFiles(folder.path and folder.path / "state", folder.ensure_ours)
        saved, asked = files.newest(), config
        is_continued = bool(saved)
        config = continued(config, saved["config"]) if saved else draw_missing(config)
        device = pick_device(config.device)
        data = build_data(config, model_preprocessing(config))
        found = {name: len(split) for name, split in data.splits.items()}
        check_same_data(config, found, is_continued=is_continued)
        config = replace(
            config,
            host_name=platform.node(),
            data_n_examples=found,
            data_n_classes=data.n_classes,
            data_version=data.version,
            model_input_shape=list(data.input_shape),
            model_output_dim=output_dim(config, data.n_classes),
            batch_size_accum=config.batch_size // config.grad_accum_steps,
        )
        train_split = on_device(data.splits["train"], device)
        other_splits = {k: on_device(s, device) for k, s in data.splits.items() if k != "train"}

        # The model and all that moves its weights.
        loss = build_loss(
            config.loss,
            n_classes=data.n_classes and config.model_output_dim,
            is_multilabel=has_several_labels(train_split),
            is_text_alone=is_text_alone(train_split),
            label_smoothing=config.label_smoothing,
            class_weights=config.loss_class_weights,
            device=device,
        )
        no_weights = {"model_weights": None, "model_pretrained": False, "model_head_init": None}
        initial = replace(config, **no_weights) if saved else config  # the state has them
        model = build_model(initial, data.input_shape, data.n_classes, data.class_names, device)
        can_spread = config.multi_gpu and isinstance(train_split, DatasetSplit)
        learner = Learner(
            model=model,
            forward=spread_over_gpus(model, device) if can_spread else model,
            loss=loss,
            optimizer=build_optimizer(config, model),
            averages=build_averages(config.averaging, model),
            micro_batch_size=config.batch_size_accum,
            clip_norm=config.clip_norm,
            clip_value=config.clip_value,
        )
        models = {"last": model} | {k: a.model for k, a in learner.averages.items()}
        models = evaluated_models(models, config.evaluate_models)

        # When things happen, in optimizer steps.
        timeline = Timeline(
            len(train_split),
            config.batch_size,
            drop_last=config.drop_last,
            steps_per_epoch=config.steps_per_epoch,
            samples_per_epoch=config.samples_per_epoch,
        )
        num_steps = timeline.num_steps(config.train_length, config.train_length_unit)
        schedule = build_schedule(
            config.lr_schedule, num_steps=num_steps, warmup_steps=config.warmup_steps
        )
        loading = build_loading(config, data, device)
        loading_eval = replace(loading, batch_size=config.eval_batch_size or config.batch_size)
        stats = Stats(list(other_splits), list(models), loss.measures)
        best = None
        if config.save_best_checkpoint or config.early_stopping_patience:
            columns = metric_columns(config.best_checkpoint_metric, stats.columns)
            best = Best(columns, config.early_stopping_patience)

        # All that must survive a kill.
        seed_everything(config.seed_training)
        sums = Sums(loss, device)
        parts = {"model": model, "optimizer": learner.optimizer, "stats": stats, "sums": sums}
        parts |= learner.averages | ({"best": best} if best else {})
        state = State(parts, {"asked": asdict(asked), "in_force": asdict(config)})
        if saved:
            state.load_state_dict(saved)
            check_same_epochs(timeline, num_steps, stats.rows)
            if state.outcome == "finished" and state.step < num_steps:
                state.outcome = None  # train_length has grown
            logger.info("goes on after step {} of {}", state.step, num_steps)
            saved = None  # its tensors have been copied
        state.run.start()
        progress.start(num_steps, step=state.step, samples=timeline.samples_after(state.step))
        folder.start(
            asked,
            config,
            is_continued=is_continued,
            facts=lambda: state.facts() | progress.status(state.step),
        )
        log_setup(config, sum(p.numel() for p in model.parameters()), device)
        saver = resources.enter_context(Saver(files, state, minutes=config.checkpoint_minutes))
        batches = training_batches(
            train_split,
            loading,
            seed=config.seed_training,
            steps_per_pass=timeline.steps_per_pass,
            first_step=state.step,
        )
        resources.callback(batches.close)  # ends worker processes
        signals.wait_for_steps()
        if state.outcome:  # it was killed after the last step
            with folder.paused(), signals.released():
                yield stats.frame(), model

        for epoch, steps in timeline.epochs(num_steps):
            if state.outcome or epoch <= state.epoch:
                continue

            # Train. Sums stay on the device and are read when a line is due, as reading
            # waits for it; then a loss out of bounds shows as well.
            model.train()
            progress.resume()
            state.training.start()
            for step in steps[max(0, state.step - steps.start) :]:
                waiting_from = perf_counter()
                inputs, targets = next(batches)
                state.data_time += perf_counter() - waiting_from

                learning_rate = config.base_lr * schedule(step)
                for group in learner.optimizer.param_groups:
                    group["lr"] = learning_rate * group.get("lr_scale", 1)
                update(learner, inputs, targets, sums)
                state.step = step + 1

                if state.step % config.log_interval == 0 or state.step == steps.stop:
                    recent = sums.recent()
                    progress.line(state.step, epoch, timeline.samples_after(state.step), recent)
                    folder.update_status()
                    if has_diverged(recent["loss"], config.max_allowed_loss):
                        state.end("diverged", f"loss {recent['loss']} at step {state.step}")
                        break
                saver.by_the_clock()
                signals.check()
            state.training.stop()

            # Evaluate every split with every model. A diverged one has nothing to show.
            results = {
                "train": sums.averages()
                | {
                    "time": state.training.seconds,
                    "data_time": state.data_time,
                    "seen_examples": timeline.samples_after(state.step),
                    "learning_rate": config.base_lr * schedule(state.step - 1) if steps else 0.0,
                }
            }
            if state.outcome != "diverged":
                for split_name, split in other_splits.items():
                    for model_name, evaluated in models.items():
                        results[f"{split_name}/{model_name}"] = evaluate(
                            evaluated,
                            signals.watched(evaluation_batches(split, loading_eval)),
                            learner.loss,
                            device=device,
                            name=f"{split_name}/{model_name}",
                            log_interval=config.log_interval_eval,
                        )

            # Save: the row, then weights where they are asked for.
            row = stats.add(epoch, state.step, results)
            frame = stats.frame()
            folder.save_stats(frame)
            is_best = best is not None and state.outcome != "diverged" and best.update(epoch, row)
            if is_best and config.save_best_checkpoint:
                save_weights(folder.checkpoint("best"), epoch, model, learner.averages)
            if config.save_freq and epoch % config.save_freq == 0:
                checkpoint = folder.checkpoint(f"epoch_{epoch:04d}")
                save_weights(checkpoint, epoch, model, learner.averages)
                prune(checkpoint, keep=config.keep_checkpoints)

            # Stop: all is done, or there is no new best for too long.
            if best and best.reason_to_stop and not state.outcome:
                state.end("early_stopped", best.reason_to_stop)
            if state.step == num_steps and not state.outcome:
                state.end("finished", f"all {num_steps} steps done")
            state.end_epoch(epoch)
            sums.reset()

            # The caller's turn: what it draws or logs does not touch this run.
            with generators_kept(), folder.paused(), signals.released():
                yield frame, model
            if not state.outcome:
                saver.at_epoch_end()

        saver.at_end()
        if config.save_plot and folder.path:
            try:
                save_learning_curves(stats.frame(), folder.path / "curves.png")
            except Exception as error:  # a picture is no reason to lose a finished run
                logger.warning("no learning curves: {}: {}", type(error).__name__, error)
        folder.finish(state.outcome, state.reason)
        files.prune(1 if config.keep_state else 0)


def run_experiment(config: Config) -> pd.DataFrame:
    """Train to the end; the stats, one row an epoch."""
    for stats, _ in experiment_generator(config):  # noqa: B007 - the last one is wanted
        pass
    return stats


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake of the user's, 130 for
    Ctrl-C, 75 (EX_TEMPFAIL) for Slurm's signals: start it again and it goes on."""
    parser = argparse.ArgumentParser(description="Train one model.")
    parser.add_argument("config", help="YAML file with keys of src/keys.py")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="base_lr=0.1 …")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.overrides)
        if is_finished(config):
            print(
                "this run is finished; delete its folder or choose another output_dir to repeat it"
            )
            stats = read_stats(config.output_dir)
        else:
            stats = run_experiment(config)
        print(summary(stats, config.output_dir))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except StopRequested as stop:
        is_ctrl_c = stop.signal == signal.SIGINT
        how = "interrupted" if is_ctrl_c else f"stopped by {stop.signal.name}"
        print(how + "; the same command goes on" * bool(config.output_dir), file=sys.stderr)
        return 130 if is_ctrl_c else 75
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
