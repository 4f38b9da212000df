"""Processes that train together, as torchrun would start them, without the seconds of a start."""

import multiprocessing
import os
import socket
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from tqdm import tqdm

from tests.waiting import PATIENCE

fork = multiprocessing.get_context("fork")


def together(number: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What work(*arguments) returns in each of so many processes, or what it raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    pipes = [fork.Pipe(duplex=False) for _ in range(number)]
    environments = [common | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(number)]
    children = [
        fork.Process(target=_work, args=(pipe, environment, work, arguments))
        for (_, pipe), environment in zip(pipes, environments, strict=True)
    ]
    for child in children:
        child.start()
    try:
        return [_received(pipe) for pipe, _ in pipes]
    finally:
        for child in children:
            child.join(60)
            child.kill()


def _received(pipe: Any) -> Any:
    assert pipe.poll(PATIENCE), "a process hangs"
    return pipe.recv()


def _work(
    pipe: Any, environment: dict[str, str], work: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    os.environ |= environment
    torch.set_num_threads(1)  # renews the thread pool while there is one thread
    tqdm.set_lock(threading.RLock())  # killed with the lock of all, it would stop the tests
    try:
        answer = work(*arguments)
    except BaseException as error:
        traceback.print_exc()
        answer = error
    with suppress(BrokenPipeError):
        pipe.send(answer)
