"""The Session: everything around training that no idea changes, in the order that is right.

    with Session(config) as run:          the folder is ours; an earlier attempt is found
        data = run.load_data()            run.config has every key filled in
        model = run.place(model)          on its device, over processes, compiled
        run.restore(learner, evaluated)   seeded; what an earlier attempt has saved is back
        for epoch in run.epochs():
            for batch in epoch.batches():
                …                         one optimizer step
            epoch.finish(results)         a row of stats, checkpoints, early stopping
            with run.callers_turn():
                yield …

It owns the processes and their ranks, signals, the run folder and its lease, resuming, device and
precision, seeds, times, the log, checkpoints, divergence. A call that comes too early or twice
raises RuntimeError and says what comes before it.
"""

import os
import platform
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from loguru import logger
from torch import Tensor, nn
from torch.optim import Optimizer

from src.config import Config
from src.data import Batch, Data, build_data, build_loader_config, micro_batches
from src.logging import RunFolder, Stats
from src.losses import check_cut
from src.metrics import metric_columns
from src.models import model_preprocessing, output_dim, without_weights
from src.optim import AveragedModel, describe_optimizer
from src.runtime.checkpoints import CheckpointFiles, CheckpointManager, save_weights
from src.runtime.distributed import SINGLE_PROCESS, DistributedContext
from src.runtime.evaluation import Batches, Evaluation, Metrics, recompute_batch_norms
from src.runtime.parallel import Parallel
from src.runtime.precision import Precision, pick_device
from src.runtime.run_length import Best, StepSchedule, has_diverged, loss_limit
from src.runtime.signals import Signals, StopRequested
from src.runtime.throughput import build_profiler, epoch_throughput, seconds_at_peak
from src.runtime.train_state import Stateful, TrainState, stateful_fields
from src.support import UserError, bad_value, pick, processes, random_state

ORDER = ("load_data", "place", "restore", "epochs")  # each once, after the one before
SECONDS_BETWEEN_STATS = 5.0  # of a run that is trained together with others


class Shared:
    """What runs have in common that one process trains together (src/stacking/): a context that
    is entered before their Sessions. data: as they are on the device, from the first run's
    load_data() on."""

    data: Data | None = None

    def __init__(self, num_runs: int) -> None:
        self.num_runs = num_runs
        self.distributed, self.signals = SINGLE_PROCESS, Signals()

    def __enter__(self) -> "Shared":
        if rank := processes.detect_rank(os.environ):
            expected = f"ordinary, as {rank.size} processes were started"
            raise bad_value("engine", "stacked", expected)
        self.signals.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.signals.__exit__(*error)


class Session:
    """One attempt at a run, from set-up to its end. A context; see the module's docstring.

    Raises UserError for mistakes in keys, data and folders, StopRequested for a signal.

    config: as it is resolved: drawn seeds and inferred keys are filled in by load_data().
    data: with its splits where they live. device: of this process. init_device: where a model is
    to be built, initial_config: by which; its weights come from a checkpoint if there is one.
    forward: the placed model as training calls it: inputs (n, *shape) -> float32 outputs.
    num_steps: of the whole run; step: how many are done. stats: the dataframe of all epochs so
    far. learner: as it was given to restore(), for metrics.
    """

    data: Data
    learner: Any
    step: int

    def __init__(self, config: Config, shared: Shared | None = None, number: int = 0) -> None:
        """shared: of runs that are trained together, of which this is that number, from 0."""
        self.requested = self.config = config
        self._shared, self._number = shared, number
        self._calls: list[str] = []  # of ORDER
        self._stats_saved, self._has_unsaved_stats = perf_counter(), False

    def __enter__(self) -> "Session":
        config = self.config
        with ExitStack() as stack:
            place = None
            if shared := self._shared:
                self._distributed, self._signals = shared.distributed, shared.signals
                place = self._number, shared.num_runs
            else:
                rank = processes.detect_rank(os.environ) if config.multi_gpu else None
                self._distributed = stack.enter_context(DistributedContext(rank))
                self._signals = stack.enter_context(Signals(self._distributed))
            is_main = self._distributed.is_main
            self._folder = stack.enter_context(RunFolder(config, self._distributed.rank, place))
            self._progress = self._folder.progress

            # The main process reads first, as it puts aside what is damaged. What is null in a
            # new run is drawn once, for all processes and for config.yaml.
            folder = Path(config.output_dir) / "state" if config.output_dir else None
            self._files = CheckpointFiles(folder, self._folder.ensure_ours, is_written=is_main)
            self._saved = self._distributed.main_process_first(self._files.newest)
            entropy = self._distributed.broadcast_object(secrets.randbits(128))
            saved = self._saved and self._saved["config"]
            self.config = self._folder.resume(saved) if saved else config.draw_missing(entropy)
            self.device = self._distributed.device(pick_device(self.config.device))
            wanted = self.config.profile if is_main else None
            profiler = build_profiler(wanted, self._folder.path, self.device)
            self._profiler = stack.enter_context(profiler)
            # Whatever is built in set-up starts from this seed, also what a fork adds to it; the
            # model's own building is a function of seed_model by itself.
            random_state.seed_everything(self.config.seed_model)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool | None:
        if isinstance(error, StopRequested) and "epochs" in self._calls:
            error.message += f" at step {self.step:,} of {self.num_steps:,}"
        # A lost connection is reported as the error of the process that ended.
        if peer_error := self._distributed.peer_error(error):
            with self._stack:
                raise peer_error from None
        return self._stack.__exit__(kind, error, traceback)

    def _call(self, name: str) -> None:
        """Raises RuntimeError unless the calls before this one were made, and this one was not."""
        if list(ORDER[: ORDER.index(name)]) != self._calls:
            done = ", ".join(f"run.{call}()" for call in self._calls) or "nothing"
            order = ", ".join(f"run.{call}()" for call in ORDER)
            raise RuntimeError(f"run.{name}() after {done}: the order is {order}, each once")
        self._calls.append(name)

    # ---- Set-up --------------------------------------------------------------------------

    def load_data(self) -> Data:
        """The data of the run, where they live; what they tell is filled into run.config."""
        self._call("load_data")
        config, known = self.config, self._shared and self._shared.data
        data = known or build_data(config, model_preprocessing(config))
        found = data.found
        found["batch_size_accum"] = config.batch_size // config.grad_accum_steps
        self._folder.check_data(config, found["data_n_examples"])
        # What fits on the device may differ between processes: the main one decides.
        is_cached = data.should_cache_on_device(config.data_on_device, self.device)
        found["data_on_device"] = is_cached = self._distributed.broadcast_object(is_cached)
        found["model_output_dim"] = output_dim(config, data.n_classes)
        self.config = config = replace(config, host_name=platform.node(), **found)
        if known is None:
            workers = config.num_workers
            on_device = data.to_device(self.device, is_cached=is_cached, num_workers=workers)
            data = replace(data, splits=on_device)
        self.data, splits = data, data.splits
        self._schedule = StepSchedule(
            len(splits["train"]),
            config.batch_size,
            drop_last=config.drop_last,
            steps_per_epoch=config.steps_per_epoch,
            samples_per_epoch=config.samples_per_epoch,
        )
        self.num_steps = self._schedule.num_steps(config.train_length, config.train_length_unit)
        self._parallel = Parallel(self._distributed, config.multi_gpu, self.device)
        self.init_device = self._parallel.init_device
        self.initial_config = without_weights(config) if self._saved else config
        return self.data

    def place(self, model: nn.Module) -> nn.Module:
        """The model on its device: in the memory format, or the slices, that the keys ask for.

        Optimizers and averages are built of what this returns. From here on all processes work in
        step; where they have different data or checkpoints, UserError.
        """
        self._call("place")
        config, train_split = self.config, self.data.splits["train"]
        step = self._saved["step"] if self._saved else 0
        self._distributed.start(self.device, step=step, data=config.data_n_examples)
        # Several processes stop together, after a step, as one that left would be waited for.
        self._signals.is_waiting = self._distributed.size > 1
        self.precision = Precision.on(
            self.device, config.precision, config.channels_last, config.compile
        )
        self._stack.enter_context(self.precision.applied())
        self._seconds_at_peak = seconds_at_peak(
            *(model, train_split, self.data.input_shape, self.device, config.precision),
            num_devices=self._parallel.num_devices,
        )
        model = self.precision.to_memory_format(model)
        self._model = model = self._parallel.prepare(model, sync_bn=config.sync_bn)
        rank, size = self._distributed.rank, self._distributed.size
        self._loader = build_loader_config(config, self.data, self.device, rank, size)
        self._local_batch_size = self._loader.local_batch_size
        network = self.precision.compiled(
            model, self._local_batch_size, fixed_shape=train_split.has_fixed_shape
        )
        self.forward = self.precision.forward(self._parallel.wrap(network))
        return model

    def restore(self, learner: Any, evaluated: Mapping[str, nn.Module]) -> None:
        """Everything is built. Seed the training, and bring back what an earlier attempt saved.

        learner: each of its fields that has a state is saved from now on; see stateful_fields().
        evaluated: name -> model, for run.evaluate().
        """
        self._call("restore")
        self.learner = learner
        config, saved = self.config, self._saved
        check_cut(learner.loss, config, self._distributed.size)
        splits = {name: split for name, split in self.data.splits.items() if name != "train"}
        self._evaluation = Evaluation(
            splits,
            evaluated,
            self._loader.for_evaluation(config.eval_batch_size),
            self.precision,
            metrics=config.metrics,
            log_interval=config.log_interval_eval,
        )
        if config.train_length and not self.num_steps:
            logger.warning(
                "train_length={} rounds to 0 steps, as an epoch has {}: nothing is trained",
                config.train_length,
                self._schedule.epoch_end(1),
            )
        self._stats = Stats(
            list(splits), list(evaluated), learner.loss.metric_names, self._evaluation.added
        )
        self._best = None
        if config.save_best_checkpoint or config.early_stopping_patience:
            columns = [*self._stats.columns, *self._stats.added]
            columns = metric_columns(config.best_checkpoint_metric, columns)
            self._best = Best(columns, config.early_stopping_patience)

        random_state.seed_everything(config.seed_training)
        self.metrics = Metrics(learner.loss, self.device, self._distributed)
        self._state = TrainState(
            self._stateful_parts(learner),
            {"asked": asdict(self.requested), "in_force": asdict(config)},
            self._distributed.size,
        )
        if saved:
            self._state.load_state_dict(saved)
            if self._state.outcome == "finished" and self._state.step < self.num_steps:
                # train_length has grown
                epoch_end, rows = self._schedule.epoch_end, self._stats.rows
                self._folder.check_epochs(epoch_end, self.num_steps, rows)
                self._state.outcome = None
            # stats.csv of a run in a stack may be behind its state
            self._has_unsaved_stats = self._shared is not None
            logger.info("resumes after step {} of {}", self._state.step, self.num_steps)
            self._saved = saved = None  # its tensors have been copied
        self.step = self._state.step
        self._start()

    def _stateful_parts(self, learner: Any) -> dict[str, Stateful]:
        """Everything that is saved, by its name in checkpoints; also moved to the device."""
        parts = stateful_fields(learner)
        modules = [part for part in parts.values() if isinstance(part, nn.Module)]
        known = {parameter for module in modules for parameter in module.parameters()}
        for module in modules:
            if module is not self._model:
                module.to(self.device)
        for name, part in parts.items():
            if isinstance(part, Optimizer):
                stepped = {p for group in part.param_groups for p in group["params"]}
                if not stepped <= known:
                    raise UserError(
                        f"{name}: it steps parameters of a module that is no field of the learner; "
                        "make that module a field of it, or build the optimizer after "
                        "run.place(model), of the model that this returns"
                    )
                self._distributed.average_gradients(stepped - {*self._model.parameters()})
        own: dict[str, Stateful] = {"stats": self._stats, "sums": self.metrics}
        own |= {"best": self._best} if self._best else {}
        if taken := own.keys() & parts.keys():
            raise UserError(f"learner: {', '.join(taken)} is what the Session saves by itself")
        self._learned = parts
        averages = {n: part.model for n, part in parts.items() if isinstance(part, AveragedModel)}
        self._saved_models = {"last": self._model} | averages
        return {name: self._parallel.as_stateful(part) for name, part in parts.items()} | own

    def _start(self) -> None:
        """The clocks run, the folder says what is trained, and the batches are on their way."""
        config, state, progress = self.config, self._state, self._progress
        state.run.start()
        samples = self._schedule.samples_after(state.step)
        progress.start(self.num_steps, step=state.step, samples=samples)
        seconds = {"seconds_before": round(state.run.before, 1)}
        self._folder.start(
            config,
            facts=lambda: {"epoch": state.epoch} | seconds | progress.status(state.step),
            uses=self._parallel.uses(),
        )
        optimizers = [x for x in self._learned.values() if isinstance(x, Optimizer)]
        described = self.precision.describe(), *map(describe_optimizer, optimizers)
        described = *described, self._parallel.describe()
        num_parameters = sum(p.numel() for p in self._model.parameters())
        progress.log_setup(config, num_parameters, self.device, described)
        minutes = config.checkpoint_minutes
        checkpoints = CheckpointManager(self._files, state, self._distributed, minutes=minutes)
        self._checkpoints = self._stack.enter_context(checkpoints)
        batches = self.data.splits["train"].training_batches(
            self._loader,
            seed=config.seed_training,
            steps_per_pass=self._schedule.steps_per_pass,
            first_step=state.step,
        )
        self._batches = self._stack.enter_context(closing(batches))  # which ends worker processes
        self._signals.is_waiting = True

    # ---- Training ------------------------------------------------------------------------

    @property
    def stats(self) -> pd.DataFrame:
        return self._stats.frame()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train: finished, diverged or stopped early."""
        return self._state.outcome is not None

    @property
    def has_diverged(self) -> bool:
        return self._state.outcome == "diverged"

    def epochs(self) -> Iterator["Epoch"]:
        """The epochs that are left; when they are done, the run is finished in its folder."""
        self._call("epochs")
        for number, steps in self._schedule.epochs(self.num_steps):
            if self.is_over or number <= self._state.epoch:
                continue
            yield Epoch(self, number, steps)
            if self._state.epoch != number:
                raise RuntimeError("epoch.finish(results) comes at the end of every epoch")
        self.end()

    def end(self) -> None:
        """Nothing is left to train: the run is finished in its folder."""
        self._checkpoints.at_end()
        if self._has_unsaved_stats:
            self.save_stats(is_urgent=True)
        if self.config.save_plot and self._folder.path:
            from src.analysis import save_learning_curves

            save_learning_curves(self._stats.frame(), self._folder.path / "curves.png")
        self._folder.finish(self._state.outcome, self._state.reason)
        self._files.prune(1 if self.config.keep_state else 0)

    def micro_batches(self, inputs: Tensor, targets: Tensor) -> Iterable[Batch]:
        """The batch in grad_accum_steps parts. Gradients are averaged in the last one."""
        batches = [(inputs, targets)]
        if len(targets) > self._local_batch_size:
            batches = micro_batches(inputs, targets, self._local_batch_size)
        return batches if self._distributed.size == 1 else self._parallel.synchronized(batches)

    def loss_scale(self, normalizer: float | Tensor, device: torch.device) -> Tensor:
        """What summed losses are multiplied by, (): 1 / the normalizer of the whole batch.

        normalizer: of this process's shard of it.
        """
        if self._distributed.size > 1:
            samples_after = self._schedule.samples_after
            num_examples = samples_after(self.step + 1) - samples_after(self.step)
            normalizer = self._distributed.total(normalizer, num_examples)
        scale = self._distributed.size / normalizer  # DDP averages gradients over processes
        # Written on the device, not copied there: a copy would wait for all a GPU has to do.
        return scale if isinstance(scale, Tensor) else torch.full((), scale, device=device)

    # ---- Between epochs ------------------------------------------------------------------

    def save_stats(self, *, is_urgent: bool) -> None:
        """Write stats.csv; by the clock where it is not urgent, as an epoch of many small runs
        takes less time than their files."""
        now = perf_counter()
        self._has_unsaved_stats = not is_urgent and now - self._stats_saved < SECONDS_BETWEEN_STATS
        if not self._has_unsaved_stats:
            self._stats_saved = now
            self._folder.save_stats(self._stats.frame(), self._stats.arrays)

    def recompute_batch_norms(self, model: nn.Module) -> None:
        """Set the statistics of the model's batch norms by one pass over the training examples."""
        train_split, seed = self.data.splits["train"], self.config.seed_training
        batches = self._signals.watched(train_split.shuffled_batches(self._loader, seed=seed))
        recompute_batch_norms(model, batches, self.precision.forward(model), self._distributed)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """'SPLIT/MODEL' -> metric -> value, of every split but train and every evaluated model."""
        self._parallel.broadcast_buffers(self._evaluation.models.values())
        results = self._evaluation.of_all(self, self.metrics.empty, self._signals.watched)
        self._progress.note_evaluation(results)
        return results

    def evaluation_batches(self, split: str) -> Batches:
        """All examples of a split in order, not augmented, (inputs, targets) on the device: the
        same in each process, for metrics of a whole split."""
        loader = self._loader.for_evaluation(self.config.eval_batch_size)
        loader = replace(loader, rank=0, num_processes=1)
        found = pick(self.data.splits, split, "evaluation_batches")
        return self._signals.watched(found.evaluation_batches(loader))

    @contextmanager
    def callers_turn(self) -> Iterator[None]:
        """What the program around the run draws or logs does not touch it; Ctrl-C is its own."""
        with random_state.isolate_rng(), self._folder.paused(), self._signals.released():
            yield
        if not self.is_over:
            self._checkpoints.at_epoch_end()


class Epoch:
    """The training between two evaluations: steps counts from 0, and over the whole run."""

    def __init__(self, session: Session, number: int, steps: range) -> None:
        self.session, self.number, self.steps = session, number, steps
        self.metrics = session.metrics

    def batches(self) -> Iterator[Batch]:
        """The batches that are left of this epoch, (inputs (n, *shape), targets): a step each.

        What is called here in every step is a good part of the time of a small model: one process
        alone only looks whether there is a signal or a save is due.
        """
        run, state, steps = self.session, self.session._state, self.steps
        distributed, signals, checkpoints = run._distributed, run._signals, run._checkpoints
        run._progress.resume()
        state.training.start()
        left = steps[max(0, run.step - steps.start) :]
        for step in run._profiler.steps(left, state, run.num_steps):
            waiting_from = perf_counter()
            batch = next(run._batches)
            state.data_time += perf_counter() - waiting_from
            if distributed.size > 1:
                distributed.seed(run.config.seed_training, step)
            signals.is_in_step = True
            try:
                yield batch
            finally:
                signals.is_in_step = False
            run.step = state.step = step + 1
            if run.step == 1 and run.requested.max_allowed_loss is None:
                self.choose_loss_limit()
            if run.step % run.config.log_interval == 0 or run.step == steps.stop:
                # Metrics stay on the device and are read here alone, as reading waits for it; so
                # a loss out of bounds shows here as well.
                recent = self.metrics.compute_since_last()
                samples = run._schedule.samples_after(run.step)
                run._progress.line(run.step, self.number, samples, recent)
                run._folder.update_status()
                if has_diverged(recent["loss"], run.config.max_allowed_loss):
                    state.end("diverged", f"loss {recent['loss']} at step {run.step}")
                    break
            if distributed.size > 1:
                if distributed.should_sync_flags():
                    checkpoints.by_the_clock()
                    signals.check()
            else:
                if perf_counter() >= checkpoints.due:  # asked here, as most steps need no call
                    checkpoints.by_the_clock()
                if signals.received or signals.launcher:
                    signals.check()
        self.end_training()

    def end_training(self) -> None:
        """What the epoch's steps have measured is in self.metrics."""
        run, state = self.session, self.session._state
        state.training.stop()
        self._training = self.metrics.compute() | epoch_throughput(
            state, run._schedule, self.steps, run._seconds_at_peak
        )

    def choose_loss_limit(self) -> None:
        """max_allowed_loss was not given: it follows the loss of the first step."""
        run = self.session
        limit = loss_limit(self.metrics.compute()["loss"], run.config.max_allowed_loss)
        if limit != run.config.max_allowed_loss:
            run.config = replace(run.config, max_allowed_loss=limit)
            run._state.config["in_force"] = asdict(run.config)
            run._folder.change_config(run.config)

    def finish(self, results: dict[str, dict[str, float]]) -> None:
        """Record the epoch, save the requested weights, and see whether to stop.

        results: 'train' or 'SPLIT/MODEL' -> name -> number. The names that become columns of
        stats.csv are listed in Stats (src/logging/records.py).
        """
        run, state, config = self.session, self.session._state, self.session.config
        added = results.get("train", {})
        for name in self._training.keys() & added.keys():
            raise bad_value("results['train']", name, "another name: this one is measured already")
        training = self._training | added
        results = {"train": training} | {k: v for k, v in results.items() if k != "train"}
        results |= run._folder.machine_use.of_epoch(training)
        row = run._stats.add(self.number, state.step, results)
        run.save_stats(is_urgent=run._shared is None or bool(run._stats.arrays))
        best = run._best
        for column in run._stats.arrays.keys() & set(best.columns if best else ()):
            expected = "a column of numbers: this one holds arrays"
            raise bad_value("best_checkpoint_metric", column, expected)
        is_best = best is not None and not run.has_diverged and best.update(self.number, row)
        if is_best and config.save_best_checkpoint:
            save_weights(run._folder.checkpoint("best"), self.number, run._saved_models)
        if config.save_freq and self.number % config.save_freq == 0:
            path = run._folder.checkpoint(f"epoch_{self.number:04d}")
            save_weights(path, self.number, run._saved_models, keep=config.keep_checkpoints)

        if best and best.reason_to_stop and not state.outcome:
            state.end("early_stopped", best.reason_to_stop)
        if state.step == run.num_steps and not state.outcome:
            state.end("finished", f"all {run.num_steps} steps done")
        state.end_epoch(self.number)
        self.metrics.reset()
