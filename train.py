"""Train one model: python train.py cfg.yaml [key=value ...]

Every key stands in src/keys.py. Other programs put their own logic between the
epochs: `for stats, model in experiment_generator(config): …`.
"""

import errno
import os
import platform
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from loguru import logger
from torch import Tensor, nn
from torch.optim import Optimizer

from src.analysis import save_learning_curves
from src.config import CommandLine, Config, draw_missing, given, make_config
from src.data import (
    build_data,
    build_loading,
    found_in,
    has_several_labels,
    is_text,
    is_text_alone,
    is_to_hold,
    micro_batches,
    placed,
    shuffled_batches,
    training_batches,
)
from src.logging import (
    OtherRun,
    Progress,
    Stats,
    check_same_data,
    check_same_epochs,
    continued,
    folder_for,
    is_finished,
    log_setup,
    open_folder,
    read_stats,
    summary,
)
from src.losses import Loss, build_loss
from src.metrics import metric_columns
from src.models import build_model, model_preprocessing, output_dim, without_weights
from src.optim import (
    AveragedModel,
    build_averaged_models,
    build_optimizer,
    build_schedule,
    describe_optimizer,
    evaluated_models,
)
from src.runtime import (
    Best,
    Computing,
    Evaluation,
    Forward,
    Parallel,
    Saver,
    Signals,
    State,
    StateFiles,
    StopRequested,
    Sums,
    Timeline,
    World,
    build_profiler,
    ended,
    find_place,
    has_diverged,
    is_main_process,
    launch_processes,
    loss_limit,
    num_processes,
    pick_device,
    prune,
    recompute_batch_norms,
    save_weights,
)
from src.support import UserError, random_state


@dataclass
class Learner:
    """What a training step changes, and how."""

    model: nn.Module
    forward: Forward  # the model as it is called: compiled, in its precision, over processes
    parallel: Parallel
    loss: Loss
    optimizer: Optimizer
    scaler: torch.amp.GradScaler  # of the loss in fp16; in other precisions it does nothing
    averages: dict[str, AveragedModel]
    micro_batch_size: int
    clip_norm: float | None
    clip_value: float | None

    def __post_init__(self) -> None:
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]


def update(learner: Learner, inputs: Tensor, targets: Tensor, sums: Sums, whole: int) -> None:
    """One optimizer step on one batch: inputs (n, *shape), targets (n,) or (n, C), of `whole`
    examples the share of this process."""
    # The loss is a sum over examples, scaled by the weight of the whole batch: so the
    # gradients of the micro-batches add up to that of the batch, however it is cut. Those of
    # several processes are averaged, hence their number.
    weight = learner.loss.normalizer(targets)
    scale = learner.scaler.scale(learner.parallel.loss_scale(weight, whole, targets.device))
    pieces = micro_batches(inputs, targets, learner.micro_batch_size)
    for number, (x, y) in enumerate(pieces, 1):
        learner.parallel.sync(number == len(pieces))
        outputs = learner.forward(x)
        loss_sum = learner.loss(outputs, y)
        loss_sum.backward(scale)
        sums.add(loss_sum.detach(), outputs, y)

    learner.scaler.unscale_(learner.optimizer)
    if learner.clip_norm is not None:
        nn.utils.clip_grad_norm_(learner.parameters, learner.clip_norm)
    if learner.clip_value is not None:
        nn.utils.clip_grad_value_(learner.parameters, learner.clip_value)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
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
        World(find_place(os.environ) if config.multi_gpu else None) as world,
        Signals(world) as signals,
        open_folder(config, world.rank) as folder,
        Progress(world.rank) as progress,
        ExitStack() as resources,
        world.others_heard(),
    ):
        # An earlier attempt goes on. Else what is null is drawn or found, once, for config.yaml.
        files = StateFiles.of_run(config.output_dir, folder.ensure_ours, is_written=world.is_main)
        saved, asked = world.main_first(files.newest), config
        entropy = world.from_main(secrets.randbits(128))
        config = continued(config, saved["config"]) if saved else draw_missing(config, entropy)
        device = world.device(pick_device(config.device))
        profiler = build_profiler(config.profile if world.is_main else None, folder.path, device)
        resources.enter_context(profiler)
        data = build_data(config, model_preprocessing(config))
        found = found_in(config, data)
        is_continued, found_step = bool(saved), saved["step"] if saved else 0
        check_same_data(config, found["data_n_examples"], is_continued=is_continued)
        is_held = world.from_main(is_to_hold(config.data_on_device, data.splits, device))
        found |= {"data_on_device": is_held, "model_output_dim": output_dim(config, data.n_classes)}
        config = replace(config, host_name=platform.node(), **found)
        other_splits = placed(data.splits, device, is_held=is_held, num_workers=config.num_workers)
        train_split = other_splits.pop("train")

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
        initial = without_weights(config) if saved else config  # the state has them
        parallel = Parallel(world, config.multi_gpu, device)
        about = data.input_shape, data.n_classes, data.class_names
        model = build_model(initial, *about, parallel.birthplace)
        world.start(device, step=found_step, data=found["data_n_examples"])
        signals.wait_for_others()
        computing = Computing.on(device, config.precision, config.channels_last, config.compile)
        resources.enter_context(computing.in_force())
        throughput = parallel.throughput(model, train_split, data.input_shape, config.precision)
        model = parallel.prepare(computing.placed(model), sync_bn=config.sync_bn)
        loading = build_loading(config, data, device, world.rank, world.size)
        network = computing.compiled(model, loading.own_size, fixed_shape=not is_text(train_split))
        learner = Learner(
            model=model,
            forward=computing.forward(parallel.spread(network)),
            parallel=parallel,
            loss=loss,
            averages=build_averaged_models(config.averaging, model),
            optimizer=build_optimizer(config, model),
            scaler=computing.scaler(),
            micro_batch_size=loading.own_size,
            clip_norm=config.clip_norm,
            clip_value=config.clip_value,
        )
        models = {"last": model} | {k: a.model for k, a in learner.averages.items()}
        models = evaluated_models(models, config.evaluate_models)
        loading_eval = loading.for_evaluation(config.eval_batch_size)
        every = config.log_interval_eval
        evaluation = Evaluation(other_splits, models, loading_eval, computing, log_interval=every)

        # When things happen, in optimizer steps.
        timeline = Timeline(
            len(train_split),
            config.batch_size,
            drop_last=config.drop_last,
            steps_per_epoch=config.steps_per_epoch,
            samples_per_epoch=config.samples_per_epoch,
        )
        num_steps = timeline.num_steps(config.train_length, config.train_length_unit)
        if config.train_length and not num_steps:
            words = "train_length={} rounds to 0 steps, as an epoch has {}: nothing is trained"
            logger.warning(words, config.train_length, timeline.epoch_end(1))
        schedule = build_schedule(
            config.lr_schedule, num_steps=num_steps, warmup_steps=config.warmup_steps
        )
        stats = Stats(list(other_splits), list(models), loss.metric_names)
        best = None
        if config.save_best_checkpoint or config.early_stopping_patience:
            columns = metric_columns(config.best_checkpoint_metric, stats.columns)
            best = Best(columns, config.early_stopping_patience)

        # All that must survive a kill.
        random_state.seed_everything(config.seed_training)
        sums = Sums(loss, device, world)
        parts = parallel.states(model, learner.optimizer) | {"stats": stats, "sums": sums}
        parts |= learner.averages | ({"best": best} if best else {})
        parts |= {"scaler": learner.scaler} if learner.scaler.is_enabled() else {}
        state = State(parts, {"asked": asdict(asked), "in_force": asdict(config)}, world.size)
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
            uses=parallel.uses(),
        )
        chosen = computing.in_words(), describe_optimizer(learner.optimizer), parallel.in_words()
        log_setup(config, sum(p.numel() for p in model.parameters()), device, chosen)
        saver = Saver(files, state, world, minutes=config.checkpoint_minutes)
        resources.enter_context(saver)
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
            for step in profiler.steps(steps[max(0, state.step - steps.start) :], state, num_steps):
                waiting_from = perf_counter()
                inputs, targets = next(batches)
                state.data_time += perf_counter() - waiting_from

                learning_rate = config.base_lr * schedule(step)
                for group in learner.optimizer.param_groups:
                    group["lr"] = learning_rate * group.get("lr_scale", 1)
                world.seed(config.seed_training, step)
                update(learner, inputs, targets, sums, timeline.examples_of(step))
                state.step = step + 1
                if state.step == 1 and asked.max_allowed_loss is None:
                    limit = loss_limit(sums.averages()["loss"], config.max_allowed_loss)
                    if limit != config.max_allowed_loss:
                        config = replace(config, max_allowed_loss=limit)
                        state.config["in_force"] = asdict(config)
                        folder.change_config(config)

                if state.step % config.log_interval == 0 or state.step == steps.stop:
                    recent = sums.recent()
                    progress.line(state.step, epoch, timeline.samples_after(state.step), recent)
                    folder.update_status()
                    if has_diverged(recent["loss"], config.max_allowed_loss):
                        state.end("diverged", f"loss {recent['loss']} at step {state.step}")
                        break
                if world.is_time_to_agree():
                    saver.by_the_clock()
                    signals.check()
            state.training.stop()

            # Evaluate every split with every model. A diverged one has nothing to show.
            results = {
                "train": sums.averages()
                | throughput.measures(state, timeline, steps)
                | {"learning_rate": config.base_lr * schedule(state.step - 1) if steps else 0.0}
            }
            if state.outcome != "diverged":
                if config.averaging_bn == "recompute":
                    for average in learner.averages.values():
                        passing = shuffled_batches(train_split, loading, seed=config.seed_training)
                        forward = computing.forward(average.model)
                        passing = signals.watched(passing)
                        recompute_batch_norms(average.model, passing, forward, world)
                parallel.same_buffers(models.values())
                results |= evaluation.of_all(sums.empty, signals.watched)

            # Save: the row, then weights where they are asked for.
            results |= folder.machine_use.of_epoch(results["train"])
            row = stats.add(epoch, state.step, results)
            folder.save_stats(frame := stats.frame())
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
            with random_state.isolate_rng(), folder.paused(), signals.released():
                yield frame, model
            if not state.outcome:
                saver.at_epoch_end()

        saver.at_end()
        if config.save_plot and folder.path:
            save_learning_curves(stats.frame(), folder.path / "curves.png")
        folder.finish(state.outcome, state.reason)
        files.prune(1 if config.keep_state else 0)


def run_experiment(config: Config) -> pd.DataFrame:
    """Train to the end; the stats, one row an epoch."""
    for stats, _ in experiment_generator(config):  # noqa: B007 - the last one is wanted
        pass
    return stats


def with_folder(config: Config, name: str) -> Config:
    """The config with a folder of its own, the same one for all processes of the run. Says so."""
    with World(find_place(os.environ)) as world:
        chosen = None
        if world.is_main:
            folder, is_continued = folder_for(config, name)
            chosen = str(folder)
            words = f"the run in {folder} goes on" if is_continued else f"this run is in {folder}"
            print(f"output_dir is not given: {words}", flush=True)
        return replace(config, output_dir=world.from_main(chosen))


def mistakes(values: Mapping[str, Any], error: UserError | None = None) -> str:
    """All mistakes in the keys, where there is one: names are looked up as well. Of an error in a
    run that already names a key: those beside it, if it is among them."""
    from src.grid import find_mistakes

    return "\n".join(find_mistakes(values, error)) if is_main_process() else ""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake of the user's, 130 for
    Ctrl-C, 75 (EX_TEMPFAIL) for Slurm's signals: start it again and it goes on."""
    line = config = None
    try:
        line = CommandLine(sys.argv[1:] if arguments is None else arguments)
        config, note = make_config(line.values), ""
        number = num_processes(config.multi_gpu, config.device, config.dataset)
        if "output_dir" not in line.values:
            config = with_folder(config, Path(line.config).stem)
        if is_finished(config):
            again = line.elsewhere(str(config.output_dir))
            note = f"this run is finished; to do it again: {again}\n"
            stats = read_stats(str(config.output_dir))
        elif number > 1:
            folder = [given("output_dir", config.output_dir)] if config.output_dir else []
            return launch_processes([__file__, line.config, *line.overrides, *folder], number)
        else:
            if config.output_dir is None and is_main_process():
                print("output_dir is null: nothing of this run will be kept", flush=True)
            stats = run_experiment(config)
        if is_main_process():
            print(note + summary(stats, config.output_dir))
    except OtherRun as error:
        elsewhere = line.elsewhere(str(config and config.output_dir))
        return ended(mistakes(line.values) or f"{error}; for example: {elsewhere}", 2)
    except UserError as error:
        return ended((line and mistakes(line.values, error if config else None)) or error, 2)
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        return ended(UserError.from_os(error), 2)  # what no name can be
    except StopRequested as stop:
        words = stop.words + "; the same command goes on" * bool(config and config.output_dir)
        return ended(words, stop.exit_code)
    except KeyboardInterrupt:
        return ended("interrupted", 130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
