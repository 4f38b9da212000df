"""The training state: everything that is saved in a checkpoint.

Which example comes next is a function of the step, and so is the learning rate: the step is the
position in the data and in the schedule, and no iterator or scheduler has a state of its own.
"""

import copy
from dataclasses import dataclass, field, fields
from time import perf_counter
from typing import Any, Protocol

import torch
from loguru import logger

from src.support import UserError, random_state

COUNTS = ("step", "epoch", "outcome", "reason", "data_time")  # saved as they are


class Stateful(Protocol):
    """A part of the state: modules, optimizers, averaged models, metrics, the stats."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class Stopwatch:
    """Seconds that add up over starts and stops, and over attempts."""

    def __init__(self) -> None:
        self.before = 0.0
        self.since: float | None = None

    @property
    def seconds(self) -> float:
        return self.before + (0.0 if self.since is None else perf_counter() - self.since)

    def start(self) -> None:
        self.since = perf_counter()

    def stop(self) -> None:
        self.before, self.since = self.seconds, None


def stateful_fields(learner: Any) -> dict[str, Stateful]:
    """The state of a dataclass: each field with state_dict and load_state_dict, by its name.

    Of a field that holds a dict or a list of such, each entry counts: by its own name in the
    dict, or by the field's with its number. A GradScaler that is switched off has nothing to save.
    UserError where two have one name, and where something would be lost.
    """
    found: dict[str, Stateful] = {}
    for field_ in fields(learner):
        value = getattr(learner, field_.name)
        entries = {field_.name: value}
        if isinstance(value, dict):
            entries = value
        elif isinstance(value, list | tuple):
            entries = {f"{field_.name}{number}": item for number, item in enumerate(value)}
        for name, part in entries.items():
            is_stateful = hasattr(part, "state_dict")
            if isinstance(part, torch.Tensor) or is_stateful != hasattr(part, "load_state_dict"):
                raise UserError(
                    f"learner: {name} would not be saved: what is to be has state_dict() and "
                    "load_state_dict(), as a tensor in a buffer of an nn.Module has"
                )
            if not is_stateful or not getattr(part, "is_enabled", lambda: True)():
                continue
            if name in found:
                raise UserError(f"learner: two of its parts are called {name}; rename one")
            found[name] = part
    return found


@dataclass
class TrainState:
    """The position of the run, its clocks, and `parts`: everything else with a state_dict.

    config: 'asked' and 'in_force' -> the requested and the resolved configuration, as plain values.
    """

    parts: dict[str, Stateful]
    config: dict[str, dict[str, Any]]
    num_processes: int = 1
    step: int = 0  # optimizer steps done
    epoch: int = 0  # the last one that was evaluated
    outcome: str | None = None  # finished, early_stopped, diverged; None: there is more to do
    reason: str = ""
    data_time: float = 0.0  # seconds of this epoch that training waited for data
    training: Stopwatch = field(default_factory=Stopwatch)  # of this epoch
    run: Stopwatch = field(default_factory=Stopwatch)  # of all attempts

    def end(self, outcome: str, reason: str) -> None:
        self.outcome, self.reason = outcome, reason

    def end_epoch(self, epoch: int) -> None:
        """It was trained and evaluated; the counts within an epoch are reset."""
        self.epoch, self.data_time, self.training = epoch, 0.0, Stopwatch()

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, texts, lists and dicts; the tensors are those in use."""
        return {name: getattr(self, name) for name in ("config", "num_processes", *COUNTS)} | {
            "training_seconds": self.training.seconds,
            "run_seconds": self.run.seconds,
            "generators": random_state.GlobalGenerators().state_dict(),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Resume from there. Raises UserError where the parts are not those of this code."""
        if content["parts"].keys() != self.parts.keys():
            differing = ", ".join(sorted(content["parts"].keys() ^ self.parts.keys()))
            raise UserError(f"the saved state is of other code or keys: it differs in {differing}")
        saved = content["parts"] | {"generators": content["generators"]}
        for name, part in (self.parts | {"generators": random_state.GlobalGenerators()}).items():
            try:
                part.load_state_dict(saved[name])
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
                what = f"{name}: {' '.join(str(error).split())}"
                raise UserError(f"the saved state does not fit this code: {what}") from None
        for name in COUNTS:
            setattr(self, name, content[name])
        self.training.before = content["training_seconds"]
        self.run.before = content["run_seconds"]
        if (before := content.get("num_processes", 1)) != self.num_processes:
            logger.warning(
                "resumes in {} instead of {} processes: sums are equal to rounding; dropout, mixed "
                "images and the statistics of batch norms, where there are any, are not",
                self.num_processes,
                before,
            )


def is_sharded(value: torch.Tensor) -> bool:
    return hasattr(value, "full_tensor")  # a DTensor, whose module is slow to import


def snapshot(value: Any, *, is_kept: bool = True) -> Any:
    """A copy on the CPU that training does not change any more.

    The shards of a sharded model are put together, which all processes do; those that do not
    write keep nothing.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if is_sharded(value):
            value = value.full_tensor()
        return value.to("cpu", copy=True) if is_kept else None
    if isinstance(value, dict):
        copied = copy.copy(value)  # with the notes on versions that torch's modules leave there
        copied.update((key, snapshot(item, is_kept=is_kept)) for key, item in value.items())
        return copied
    if isinstance(value, list | tuple):
        return type(value)(snapshot(item, is_kept=is_kept) for item in value)
    return value
