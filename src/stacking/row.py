"""A run of a stack: an ordinary Session, whose steps are made by the stack."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from loguru import logger
from torch import nn

from src.config import Config
from src.runtime import Epoch, Metrics, Session, Shared, StopRequested, in_line
from src.support import random_state


class Row(Session):
    """Its log is silent but for its turn(), as all rows log to one logger."""

    epoch: Epoch

    def __init__(self, config: Config, shared: Shared, number: int) -> None:
        super().__init__(config, shared, number)
        self.is_open = self.is_closed = False

    def __enter__(self) -> "Row":
        super().__enter__()
        self.is_open, self._folder.log.is_paused = True, True
        return self

    def close(self, error: BaseException | None = None) -> BaseException | None:
        """Leave the Session, with an error of the whole stack or without; an error of the row's."""
        self.is_closed = True
        if not self.is_open:  # it could not be entered
            return None
        own = StopRequested(error.signal) if isinstance(error, StopRequested) else error
        with self.turn():
            try:
                if self._has_unsaved_stats and isinstance(error, StopRequested | GeneratorExit):
                    self.save_stats(is_urgent=True)
                self.__exit__(type(own) if own else None, own, own and own.__traceback__)
            except Exception as failure:  # the others are to be closed as well
                return failure
        if isinstance(error, StopRequested) and isinstance(own, StopRequested):
            error.message = own.message
        return None

    @contextmanager
    def turn(self) -> Iterator[None]:
        self._folder.log.is_paused = False
        try:
            yield
        finally:
            self._folder.log.is_paused = True

    # ---- Training ------------------------------------------------------------------------

    def restore(self, learner: Any, evaluated: Mapping[str, nn.Module]) -> None:
        super().restore(learner, evaluated)
        self.generators = random_state.GlobalGenerators().state_dict()

    @property
    def is_over(self) -> bool:
        return self.is_closed or super().is_over

    @property
    def stats(self) -> pd.DataFrame:
        return super().stats if hasattr(self, "_stats") else pd.DataFrame()  # it could not start

    @property
    def last_epoch(self) -> int:
        """That was evaluated."""
        return self._state.epoch

    def epochs_of_run(self) -> Iterator[tuple[int, range]]:
        """All of them, numbers and steps."""
        return self._schedule.epochs(self.num_steps)

    def batches_from(self, step: int) -> Any:
        seed: Any = self.config.seed_training
        return self.data.splits["train"].training_batches(
            self._loader,
            seed=seed,
            steps_per_pass=self._schedule.steps_per_pass,
            first_step=step,
        )

    def begin_epoch(self, number: int, steps: range) -> None:
        if not hasattr(self, "epoch"):
            self._call("epochs")
        self.epoch = Epoch(self, number, steps)
        self._progress.resume()
        self._state.training.start()

    def take(self, step: int, sums: dict[str, Any], read: dict[str, Any], data_time: float) -> None:
        """What its steps of this epoch have come to. read: the sums at the last look."""
        self.step = self._state.step = step
        self.metrics.sums, self.metrics.read = sums, read
        self._state.data_time = data_time

    def log_progress(self) -> None:
        """A line with the means of the epoch so far."""
        samples = self._schedule.samples_after(self.step)
        with self.turn():
            self._progress.line(self.step, self.epoch.number, samples, self.metrics.compute())
            self._folder.update_status()

    def diverge(self, loss: float) -> None:
        self._state.end("diverged", f"loss {loss} at step {self.step}")

    def finish_epoch(self, learning_rate: float, results: Mapping[str, dict[str, Any]]) -> None:
        """results: 'SPLIT/MODEL' -> metrics."""
        with self.turn():
            for name, metrics in results.items():
                logger.info("{} | {} | {:.1f} s", name, in_line(metrics), metrics["time"])
            if results:
                self._progress.note_evaluation(results)
            self.epoch.finish({"train": {"learning_rate": learning_rate}, **results})

    @property
    def evaluated(self) -> Sequence[str]:
        """last, av, …"""
        return list(self._evaluation.models)

    def split_batches(self, split: str, *, size: int) -> Any:
        loader = self._loader.for_evaluation(size)
        return self.data.splits[split].evaluation_batches(loader)

    def new_added(self) -> Metrics:
        """For what is measured of a batch beside the loss and the accuracy."""
        return self.metrics.empty(self._evaluation.of_batch)

    def measure_split(self, split: str, model: str) -> dict[str, Any]:
        """What is measured of a split as a whole."""
        if not self._evaluation.of_split:
            return {}
        network = self._evaluation.models[model]
        was_training = network.training
        with torch.no_grad(), random_state.isolate_rng():
            found = self._evaluation.measure_split(self, network.eval(), split)
        network.train(was_training)
        return found

    def save(self) -> None:
        """The state, at once."""
        with self.turn():
            self._checkpoints.save()
