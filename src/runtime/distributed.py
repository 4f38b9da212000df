"""The processes that train one model together and the messages between them; or one alone.

One process a GPU, or several on CPUs: started by train.py itself (src/runtime/command_line.py), by
torchrun or by srun. Process 0, the main one, owns the run folder. Each takes its shard of every
batch (src/data/order.py), and all have the same weights after every step.
"""

import atexit
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from itertools import count
from time import monotonic, perf_counter, sleep
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from src.support import UserError, bad_value, processes, random_state

T = TypeVar("T")
RENDEZVOUS_TIMEOUT = timedelta(minutes=10)  # for all to be there
COLLECTIVE_TIMEOUT = timedelta(hours=2)  # the main process may prepare data while others wait
POLL_INTERVAL = 0.05  # seconds, as all below
ACKNOWLEDGE_TIMEOUT = 10.0
SYNC_INTERVAL = 0.5
MAX_CALLS_BETWEEN_SYNCS = 50
# A peer that ends with unread data on their way to it resets the connection.
GLOO_DISCONNECT = r"gloo/.*(closed by peer|reset by peer|Broken pipe)"


class PeerFailed(UserError):  # noqa: N818 - says what happened
    """Another process of the run has failed, and says so itself."""


class DistributedContext:
    """All processes of the run, as seen by one of them; alone, each method is next to nothing.

    A context: an error before the first step is sent to the others, who end as well; a later one
    is left in the store for those who lose the connection by it (peer_error).
    """

    def __init__(self, rank_info: processes.RankInfo | None) -> None:
        self.rank_info = rank_info
        self.rank, self.size = (rank_info.rank, rank_info.size) if rank_info else (0, 1)
        self.is_main = self.rank == 0
        self.round = 0  # of exchanges
        self.is_starting = self.is_in_step = False
        self.calls = self.next_sync = 0
        self.synced_at, self.synced_calls = perf_counter(), 0

    def __enter__(self) -> "DistributedContext":
        if self.rank_info:
            runs = f"run {next(_NUMBERS)}"  # a program may do several, in the same order in all
            self.store = dist.PrefixStore(runs, _store(self.rank_info))
            self.is_starting = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, _: Any) -> None:
        is_news = isinstance(error, Exception) and not isinstance(error, PeerFailed)
        # a user's mistake by its message, other errors in a line with their type
        words = " ".join(f"{type(error).__name__}: {error}".split())
        words = str(error) if isinstance(error, UserError) else words
        if self.is_starting and isinstance(error, Exception):
            if is_news:
                self._put({"failed": words})
            with suppress(RuntimeError):
                self.store.set(f"heard/{self.rank}", "")
                # The main process waits for all, as its store goes with it.
                until = monotonic() + ACKNOWLEDGE_TIMEOUT * self.is_main
                heard = [f"heard/{rank}" for rank in range(self.size)]
                while monotonic() < until and not self.store.check(heard):
                    sleep(POLL_INTERVAL)
        elif self.is_in_step and (error is None or getattr(error, "is_agreed", False)):
            dist.barrier()  # who ends first may be taken for one that has failed
            _leave_at_exit()
        elif self.is_in_step and is_news:
            with suppress(RuntimeError):  # the store is gone, and the main process with it
                self.store.set(f"failed/{self.rank}", words)

    def peer_error(self, error: BaseException | None) -> "PeerFailed | None":
        """The error of another process that has ended first, where this error is torch's about the
        lost connection; None for any other error."""
        is_error = self.is_in_step and isinstance(error, Exception)
        if not (is_error and re.search(GLOO_DISCONNECT, str(error))):
            return None
        with suppress(RuntimeError):  # the store may be gone with the main process
            for rank in range(self.size):
                if self.store.check([f"failed/{rank}"]):
                    message = self.store.get(f"failed/{rank}").decode()
                    return PeerFailed(f"process {rank} has failed: {message}")
        logs = "training.log" if self.rank else "training.rank*.log"
        words = f"another process of this run has ended first: killed, or {logs} says why"
        return PeerFailed(words)

    def device(self, device: torch.device) -> torch.device:
        """The device for this process: of several GPUs, its own. UserError where it has none."""
        if self.size == 1 or device.type != "cuda" or not self.rank_info:
            return device
        visible, number = torch.cuda.device_count(), self.rank_info.local_rank
        if device.index is not None or number >= visible > 1:
            there_are = f"{self.size} processes, and {visible} GPUs are visible to this one"
            raise bad_value("device", str(device), f"null, cuda or cpu, as there are {there_are}")
        own = torch.device("cuda", number if visible > 1 else 0)  # srun may show each one its own
        torch.cuda.set_device(own)
        return own

    # ---- Before the first step: messages by way of a store -------------------------------

    def broadcast_object(self, value: Any) -> Any:
        """The main process's value, in all: numbers, texts, lists and dicts."""
        return self._exchange({"value": value if self.is_main else None})[0]["value"]

    def gather_objects(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; in step with them, of any type."""
        if self.size == 1:
            return [value]
        if self.is_in_step:
            values: list[Any] = [None] * self.size
            dist.all_gather_object(values, value)
            return values
        return [message["value"] for message in self._exchange({"value": value})]

    def main_process_first(self, make: Callable[[], T]) -> T:
        """make(): in the main process first, as it may write what the others read."""
        made = make() if self.is_main else None
        self._exchange({})
        return made if self.is_main else make()  # type: ignore[return-value]

    def start(self, device: torch.device, **agreed: Any) -> None:
        """All are set up: from here on they work in step. UserError where `agreed` differs."""
        messages = self._exchange(agreed)
        for key in agreed:
            if len({json.dumps(message[key]) for message in messages}) > 1:
                each = ", ".join(str(message[key]) for message in messages)
                raise UserError(f"{key}: the processes of this run have {each}")
        self.is_starting, self.is_in_step = False, self.size > 1
        if self.rank_info and not dist.is_initialized():
            # One group for all runs of the program, until it ends.
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=dist.PrefixStore("group", _store(self.rank_info)),
                rank=self.rank,
                world_size=self.size,
                timeout=COLLECTIVE_TIMEOUT,
                device_id=device if device.type == "cuda" else None,
            )

    def _exchange(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages of all processes, by rank."""
        if not self.rank_info:
            return [message]
        self._put(message)
        messages = []
        try:
            for key in [f"{self.round}/{rank}" for rank in range(self.size)]:
                while not self.store.check([key]):  # waiting inside of it would hold up signals
                    sleep(POLL_INTERVAL)
                messages.append(json.loads(self.store.get(key)))
        except RuntimeError:  # DistNetworkError: the store is gone, and the process with it
            raise PeerFailed("the main process has ended") from None
        self.round += 1
        for rank, received in enumerate(messages):
            if "failed" in received:
                raise PeerFailed(f"process {rank} has failed: {received['failed']}")
        return messages

    def _put(self, message: dict[str, Any]) -> None:
        self.store.set(f"{self.round}/{self.rank}", json.dumps(message))

    def seed(self, seed: int, step: int) -> None:
        """Seed what a step draws (dropout) in each of several processes: a function of the step,
        so that no state needs to hold their generators."""
        drawn = np.random.SeedSequence([seed, step, self.rank, 3]).generate_state(1)
        random_state.seed_everything(int(drawn[0]))

    # ---- In step -------------------------------------------------------------------------

    def gather(self, numbers: Sequence[float]) -> torch.Tensor:
        """(processes, numbers) float64, on the CPU."""
        own = torch.tensor(numbers, dtype=torch.float64)
        if self.size == 1:
            return own[None]
        all_of_them = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(all_of_them, own)
        return torch.stack(all_of_them)

    def total(self, weight: float | torch.Tensor, num_examples: int) -> float | torch.Tensor:
        """The weight of a whole batch of num_examples, from that of the shard of each of several
        processes."""
        if not isinstance(weight, torch.Tensor):
            return num_examples  # which is what plain losses weigh
        dist.all_reduce(total := weight.clone())
        return total

    def average_(self, tensors: Iterable[torch.Tensor], weight: float) -> None:
        """In place, the mean of each over the processes, of which this one counts so much."""
        if self.size > 1:
            total = float(self.gather([weight]).sum())
            for tensor in tensors:
                tensor *= weight / total
                dist.all_reduce(tensor)

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """From here on each gets the mean gradient of the processes, as DDP gives the placed model
        its own: for modules beside it. All use them in each backward pass, in the same order."""

        def average(parameter: torch.Tensor) -> None:
            # What earlier passes left is equal in all, so that the mean leaves that as it is.
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad.div_(self.size))

        for parameter in parameters:
            if self.size > 1 and parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(average)

    def max(self, number: int) -> int:
        """The largest of the processes'."""
        return int(self.gather([number]).max()) if self.size > 1 else number

    def should_sync_flags(self) -> bool:
        """Whether it is time to ask the others whether a signal came, or a save is due: called
        after every step by all processes, with the same answer in all, several times a second."""
        if self.size == 1:
            return True
        self.calls += 1
        if self.calls < self.next_sync:
            return False
        now = perf_counter()
        seconds_per_call = (now - self.synced_at) / max(self.calls - self.synced_calls, 1)
        calls = int(SYNC_INTERVAL / max(seconds_per_call, 1e-9))
        calls = self.max(max(1, min(calls, MAX_CALLS_BETWEEN_SYNCS)) if self.is_main else 0)
        self.synced_at, self.synced_calls = now, self.calls
        self.next_sync = self.calls + calls
        return True

    def sync_flags_next(self) -> None:
        """Sync at the next call, as what follows has another pace."""
        self.next_sync = 0
        self.synced_at, self.synced_calls = perf_counter(), self.calls


SINGLE_PROCESS = DistributedContext(None)


_NUMBERS = count()  # of the runs of this program


@cache
def _leave_at_exit() -> None:
    """Destroy the process group at the program's end: its next run needs it."""
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


@cache
def _store(info: processes.RankInfo) -> dist.Store:
    """The store of the processes' messages: torchrun's, or the main process's own."""
    from torch.distributed.rendezvous import rendezvous

    os.environ |= {"MASTER_ADDR": info.address, "MASTER_PORT": info.port}
    try:
        store, _, _ = next(rendezvous("env://", info.rank, info.size, timeout=RENDEZVOUS_TIMEOUT))
    except (RuntimeError, ValueError) as error:  # DistNetworkError
        raise UserError(
            f"the {info.size} processes of this run do not meet at {info.address}:{info.port}, "
            f"MASTER_ADDR and MASTER_PORT: {str(error).splitlines()[0]}"
        ) from None
    return dist.PrefixStore("experiment", store)
