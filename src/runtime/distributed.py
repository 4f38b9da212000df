"""The processes that train one model together, and what they tell each other; or one alone.

One process a GPU, or several on CPUs: started by train.py itself (src/runtime/command_line.py), by
torchrun or by srun. Process 0, the main one, owns the run folder. Each takes a share of every
batch (src/data/order.py), and all have the same weights after every step.
"""

import atexit
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from time import monotonic, perf_counter, sleep
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from src.support import UserError, bad_value, random_state

T = TypeVar("T")
RENDEZVOUS_TIMEOUT = timedelta(minutes=10)  # for all to be there
COLLECTIVE_TIMEOUT = timedelta(
    hours=2
)  # of those that wait: the main process may prepare data for all
SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_TO_HEAR = 10.0
SECONDS_BETWEEN_AGREEMENTS = 0.5
MOST_CALLS_BETWEEN = 50
# One that ends with unread words of ours on their way to it resets the connection.
ENDED_IN_GLOO_S_WORDS = r"gloo/.*(closed by peer|reset by peer|Broken pipe)"
PORTS = range(20_000, 32_768)  # below those that Linux gives out by itself


class PeerFailed(UserError):  # noqa: N818 - says what happened
    """Another process of the run has failed, and says so itself."""


@dataclass(frozen=True)
class RankInfo:
    """Which process this is, counted from 0, of how many; which one of its machine."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: str


def detect_rank(environment: Mapping[str, str]) -> RankInfo | None:
    """What torchrun or srun say, and our own launcher, who speaks as torchrun; None: alone."""
    given = environment.get
    if int(given("WORLD_SIZE", 1)) > 1:
        rank, size, local_rank = (given(k, "0") for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    elif int(given("SLURM_STEP_NUM_TASKS", 1)) > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        rank, size, local_rank = (given(name, "0") for name in names)
    else:
        return None
    # srun's own node, the first one of the job where a submit script calls it
    address = given("MASTER_ADDR") or given("SLURM_LAUNCH_NODE_IPADDR") or "127.0.0.1"
    job = int(given("SLURM_JOB_ID", 0)) + int(given("SLURM_STEP_ID", 0))
    port = given("MASTER_PORT") or str(PORTS[job % len(PORTS)])
    return RankInfo(int(rank), int(size), int(local_rank), address, port)


def is_main_process() -> bool:
    """Whether this one speaks for all."""
    place = detect_rank(os.environ)
    return place is None or place.rank == 0


def ended(words: object, exit_code: int) -> int:
    """Say how it ended, and give the code back. Others than the main process are silent and give
    0, as starters take the first code that is not for that of all."""
    if not is_main_process():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # srun's, as the main one ended: would count
        return 0
    print(words, file=sys.stderr)
    return exit_code


class DistributedContext:
    """All processes of the run, as seen by one of them; alone, each method is next to nothing.

    A context: an error on the way to the first step is told to the others, who end as well; what
    a later one was is there for those whom it keeps waiting (reraise_peer_error).
    """

    def __init__(self, place: RankInfo | None) -> None:
        self.place = place
        self.rank, self.size = (place.rank, place.size) if place else (0, 1)
        self.is_main = self.rank == 0
        self.round = 0  # of exchanges
        self.is_starting = self.is_in_step = False
        self.calls = self.next_agreement = 0
        self.agreed_at, self.agreed_calls = perf_counter(), 0

    def __enter__(self) -> "DistributedContext":
        if self.place:
            runs = f"run {next(_NUMBERS)}"  # a program may do several, in the same order in all
            self.store = dist.PrefixStore(runs, _store(self.place))
            self.is_starting = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, _: Any) -> None:
        if self.is_starting and isinstance(error, Exception):
            self._tell_failure(error)
        elif self.is_in_step and (error is None or getattr(error, "is_agreed", False)):
            dist.barrier()  # who ends first may be taken for one that has failed
            _leave_at_exit()
        elif self.is_in_step and _is_own(error):
            with suppress(RuntimeError):  # the store is gone, and the main process with it
                self.store.set(f"failed/{self.rank}", _describe_error(error))

    def peer_error(self, error: BaseException | None) -> "PeerFailed | None":
        """What another process said that has ended first, where the error is torch's about the
        lost connection; None for any other error."""
        is_error = self.is_in_step and isinstance(error, Exception)
        if is_error and re.search(ENDED_IN_GLOO_S_WORDS, str(error)):
            return PeerFailed(self._last_words())
        return None

    def _last_words(self) -> str:
        """Of a process that has ended; the main one's may be gone with it."""
        with suppress(RuntimeError):
            for rank in range(self.size):
                if self.store.check([f"failed/{rank}"]):
                    words = self.store.get(f"failed/{rank}").decode()
                    return f"process {rank} has failed: {words}"
        logs = "training.log" if self.rank else "training.rank*.log"
        return f"another process of this run has ended first: killed, or {logs} says why"

    def _tell_failure(self, error: Exception) -> None:
        if _is_own(error):
            self._put({"failed": _describe_error(error)})
        self._wait_until_heard()

    def _wait_until_heard(self) -> None:
        """The main process does, as the words may be gone with it."""
        with suppress(RuntimeError):
            self.store.set(f"heard/{self.rank}", "")
            until = monotonic() + SECONDS_TO_HEAR * self.is_main
            heard = [f"heard/{rank}" for rank in range(self.size)]
            while monotonic() < until and not self.store.check(heard):
                sleep(SECONDS_BETWEEN_LOOKS)

    def device(self, device: torch.device) -> torch.device:
        """The device for this process: of several GPUs, its own. UserError where it has none."""
        if self.size == 1 or device.type != "cuda" or not self.place:
            return device
        visible, number = torch.cuda.device_count(), self.place.local_rank
        if device.index is not None or number >= visible > 1:
            there_are = f"{self.size} processes, and {visible} GPUs are visible to this one"
            raise bad_value("device", str(device), f"null, cuda or cpu, as there are {there_are}")
        own = torch.device("cuda", number if visible > 1 else 0)  # srun may show each one its own
        torch.cuda.set_device(own)
        return own

    # ---- Before the first step: words, by way of a store ---------------------------------

    def broadcast_object(self, value: Any) -> Any:
        """What the main process has here: numbers, texts, lists and dicts."""
        return self._exchange({"value": value if self.is_main else None})[0]["value"]

    def gather_objects(self, value: Any) -> list[Any]:
        """What each process has here, in the order of their ranks."""
        return [said["value"] for said in self._exchange({"value": value})]

    def main_process_first(self, make: Callable[[], T]) -> T:
        """What make() gives: in the main process first, as it may write what the others read."""
        made = make() if self.is_main else None
        self._exchange({})
        return made if self.is_main else make()  # type: ignore[return-value]

    def start(self, device: torch.device, **agreed: Any) -> None:
        """All are set up: from here on they work in step. UserError where `agreed` differs."""
        told = self._exchange(agreed)
        for key in agreed:
            if len({json.dumps(words[key]) for words in told}) > 1:
                each = ", ".join(str(words[key]) for words in told)
                raise UserError(f"{key}: the processes of this run have {each}")
        self.is_starting, self.is_in_step = False, self.size > 1
        if self.place and not dist.is_initialized():
            # One group for all runs of the program, until it ends.
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=dist.PrefixStore("group", _store(self.place)),
                rank=self.rank,
                world_size=self.size,
                timeout=COLLECTIVE_TIMEOUT,
                device_id=device if device.type == "cuda" else None,
            )

    def _exchange(self, words: dict[str, Any]) -> list[dict[str, Any]]:
        """What each process has said, in the order of their ranks."""
        if not self.place:
            return [words]
        self._put(words)
        told = [self._get(rank) for rank in range(self.size)]
        self.round += 1
        for rank, said in enumerate(told):
            if "failed" in said:
                raise PeerFailed(f"process {rank} has failed: {said['failed']}")
        return told

    def _put(self, words: dict[str, Any]) -> None:
        self.store.set(f"{self.round}/{self.rank}", json.dumps(words))

    def _get(self, rank: int) -> dict[str, Any]:
        key = f"{self.round}/{rank}"
        try:
            while not self.store.check([key]):  # waiting inside of it would hold up signals
                sleep(SECONDS_BETWEEN_LOOKS)
            return json.loads(self.store.get(key))
        except RuntimeError:  # DistNetworkError: the store is gone, and the process with it
            raise PeerFailed("the main process has ended") from None

    def seed(self, seed: int, step: int) -> None:
        """Of several processes each draws in a step (dropout) what no state needs to remember."""
        if self.size > 1:
            random_state.seed_everything(
                int(np.random.SeedSequence([seed, step, self.rank, 3]).generate_state(1)[0])
            )

    # ---- In step -------------------------------------------------------------------------

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over the processes, in float64."""
        return [float(x) for x in self.gather(numbers).sum(0)] if self.size > 1 else list(numbers)

    def gather(self, numbers: Sequence[float]) -> torch.Tensor:
        """(processes, numbers) float64, on the CPU."""
        own = torch.tensor(numbers, dtype=torch.float64)
        if self.size == 1:
            return own[None]
        all_of_them = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(all_of_them, own)
        return torch.stack(all_of_them)

    def total(self, weight: float | torch.Tensor, num_examples: int) -> float | torch.Tensor:
        """The weight of a whole batch of so many examples, from that of this process's share."""
        if self.size == 1:
            return weight
        if not isinstance(weight, torch.Tensor):
            return num_examples  # which is what plain losses weigh
        dist.all_reduce(whole := weight.clone())
        return whole

    def average_(self, tensors: Iterable[torch.Tensor], weight: float) -> None:
        """In place, the mean of each over the processes, of which this one counts so much."""
        if self.size > 1:
            (total,) = self.sum([weight])
            for tensor in tensors:
                tensor *= weight / total
                dist.all_reduce(tensor)

    def max(self, number: int) -> int:
        """The largest of the processes'."""
        return int(self.gather([number]).max()) if self.size > 1 else number

    def should_sync_flags(self) -> bool:
        """Asked after every step, in all processes: the same answer in all, several times a
        second. Then they may ask each other whether a signal came, or a save is due."""
        if self.size == 1:
            return True
        self.calls += 1
        if self.calls < self.next_agreement:
            return False
        now = perf_counter()
        seconds_per_call = (now - self.agreed_at) / max(self.calls - self.agreed_calls, 1)
        calls = int(SECONDS_BETWEEN_AGREEMENTS / max(seconds_per_call, 1e-9))
        calls = self.max(max(1, min(calls, MOST_CALLS_BETWEEN)) if self.is_main else 0)
        self.agreed_at, self.agreed_calls = now, self.calls
        self.next_agreement = self.calls + calls
        return True

    def sync_flags_next(self) -> None:
        """What follows has another pace."""
        self.next_agreement = 0
        self.agreed_at, self.agreed_calls = perf_counter(), self.calls


SINGLE_PROCESS = DistributedContext(None)


def _is_own(error: BaseException | None) -> bool:
    """An error that no other process knows of yet."""
    return isinstance(error, Exception) and not isinstance(error, PeerFailed)


def _describe_error(error: Exception) -> str:
    """For the others: what a user's mistake says; of others the kind as well, in one line."""
    if isinstance(error, UserError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


_NUMBERS = count()  # of the runs of this program


@cache
def _leave_at_exit() -> None:
    """Not after each run: the next one of the program needs the group."""
    atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)


@cache
def _store(place: RankInfo) -> dist.Store:
    """Where the processes leave words for each other: torchrun's, or the main process's own."""
    from torch.distributed.rendezvous import rendezvous

    os.environ |= {"MASTER_ADDR": place.address, "MASTER_PORT": place.port}
    try:
        store, _, _ = next(rendezvous("env://", place.rank, place.size, timeout=RENDEZVOUS_TIMEOUT))
    except (RuntimeError, ValueError) as error:  # DistNetworkError
        raise UserError(
            f"the {place.size} processes of this run do not meet at {place.address}:{place.port}, "
            f"MASTER_ADDR and MASTER_PORT: {str(error).splitlines()[0]}"
        ) from None
    return dist.PrefixStore("experiment", store)
