"""What processes tell each other, and how they are found."""

import itertools
import os
import signal
import threading
import time

import pytest
import torch
from several_processes import fork, together

from src.runtime.distributed import DistributedContext, PeerFailed
from src.support.errors import UserError
from src.support.processes import PORTS, RankInfo, detect_rank

CPU = torch.device("cpu")
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "7",
}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}
SRUN |= {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1", "SLURM_JOB_ID": "40001", "SLURM_STEP_ID": "2"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script, without srun
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (TORCHRUN, RankInfo(5, 8, 1, "a", "7")),
        (SRUN, RankInfo(3, 4, 1, "10.0.0.1", str(PORTS[40003 % len(PORTS)]))),
        (SRUN | {"MASTER_ADDR": "b", "MASTER_PORT": "9"}, RankInfo(3, 4, 1, "b", "9")),
        (SRUN | TORCHRUN, RankInfo(5, 8, 1, "a", "7")),  # torchrun, started by srun
    ],
)
def test_torchrun_and_srun_say_which_process_this_is(environment, place):
    assert detect_rank(environment) == place


def test_alone_it_is_all_there_is():
    with DistributedContext(None) as distributed:
        assert distributed.broadcast_object({"a": 1}) == {"a": 1}
        assert distributed.main_process_first(lambda: 5) == 5
        distributed.start(CPU, step=3)
        assert distributed.gather([1, 2.5]).tolist() == [[1, 2.5]]
        assert (distributed.max(7), distributed.device(CPU)) == (7, CPU)
        assert all(distributed.should_sync_flags() for _ in range(5))


def telling() -> dict:
    with DistributedContext(detect_rank(os.environ)) as distributed:
        order = []
        answers = {"main": distributed.broadcast_object({"seed": distributed.rank + 5})}
        answers["first"] = distributed.main_process_first(
            lambda: order.append(1) or distributed.rank
        )
        distributed.start(CPU, step=3)
        weight = torch.tensor(float(distributed.rank + 1))
        answers |= {"max": distributed.max(distributed.rank * 7)}
        answers |= {
            "total": float(distributed.total(weight, 9)),
            "whole": distributed.total(distributed.rank + 1, 9),
        }
        answers |= {"own": float(weight), "gather": distributed.gather([distributed.rank]).tolist()}
        return answers


def test_together_each_knows_the_same():
    for rank, answers in enumerate(together(3, telling)):
        assert answers == {
            "main": {"seed": 5},
            "first": rank,
            "max": 14,
            "total": 6,
            "whole": 9,
            "own": rank + 1,
            "gather": [[0], [1], [2]],
        }


def agreeing(calls: int) -> list[int]:
    with DistributedContext(detect_rank(os.environ)) as distributed:
        distributed.start(CPU)
        found = []
        for call in range(calls):
            if call == calls // 2:
                distributed.sync_flags_next()
            if distributed.should_sync_flags():
                found.append(call)
        return found


def test_they_agree_after_the_same_steps_at_most_so_many_apart():
    first, second = together(2, agreeing, 400)
    assert first == second
    assert first[0] == 0
    assert 200 in first  # asked for
    assert max(b - a for a, b in itertools.pairwise(first)) <= 50


def differing() -> None:
    with DistributedContext(detect_rank(os.environ)) as distributed:
        distributed.start(CPU, step=distributed.rank)


def test_processes_that_found_different_things_do_not_start():
    for error in together(2, differing):
        assert str(error) == "step: the processes of this run have 0, 1"


def breaking(rank: int) -> None:
    with DistributedContext(detect_rank(os.environ)) as distributed:
        if distributed.rank == rank:
            raise RuntimeError("no room")
        distributed.broadcast_object(1)


@pytest.mark.parametrize("rank", [0, 2])
def test_an_error_of_one_ends_the_others_with_its_words(rank):
    answers = together(3, breaking, rank)
    assert isinstance(answers[rank], RuntimeError)
    for other in {0, 1, 2} - {rank}:
        assert isinstance(answers[other], PeerFailed)
        assert str(answers[other]) == f"process {rank} has failed: RuntimeError: no room"


def killed_with_unread_words() -> int | None:
    """The main process, in a process of its own, dies while the other's words lie before it."""
    if os.environ["RANK"] == "0":
        (main := fork.Process(target=gathering)).start()
        main.join()
        return main.exitcode
    return gathering()


def gathering() -> None:
    with DistributedContext(detect_rank(os.environ)) as distributed:
        main = distributed.broadcast_object(os.getpid())
        distributed.start(CPU)
        distributed.gather([1.0])
        if distributed.is_main:
            time.sleep(60)
        os.kill(main, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (main, signal.SIGKILL)).start()
        with pytest.raises(RuntimeError) as lost:
            distributed.gather([1.0])
        peer_error = distributed.peer_error(lost.value)
        assert peer_error
        raise peer_error


def test_one_that_is_killed_in_step_ends_the_others_in_a_line():
    exit_code, error = together(2, killed_with_unread_words)
    assert exit_code == -signal.SIGKILL
    assert isinstance(error, PeerFailed)
    assert (
        str(error)
        == "another process of this run has ended first: killed, or training.log says why"
    )


def nowhere() -> None:
    with DistributedContext(RankInfo(1, 2, 1, "127.0.0.1", "1")):
        pass


def test_who_finds_nobody_says_where_it_looked(monkeypatch):
    from datetime import timedelta

    from src.runtime import distributed as distributed

    monkeypatch.setattr(distributed, "RENDEZVOUS_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(
        UserError, match=r"do not meet at 127\.0\.0\.1:1, MASTER_ADDR and MASTER_PORT"
    ):
        nowhere()
