"""The lease of a run folder: one live process owns the folder, wherever it runs.

The file `claim` names the owner and holds a counter that the owner raises every few seconds.
Whether an owner on another machine lives is judged by whether the counter moves while we watch,
on our own clock; on this machine by whether its process exists. Not filelock: the locks of a
network disk reach the other nodes on some clusters and not on others.
"""

import fcntl
import json
import os
import platform
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from loguru import logger

from src.support import UserError, processes

HEARTBEAT_SECONDS = 10.0
LEASE_TIMEOUT = 60.0  # seconds without a heartbeat, after which another process takes the folder
SECONDS_OF_SILENCE = 600.0  # of another machine, whose clock may differ from the file server's
COUNTER_BYTES = 20
_LAPSED: set[Any] = set()  # (token, counter) that did not move while this process watched


class LeaseLost(UserError):  # noqa: N818 - says what happened
    """Another process has taken the folder: nothing more may be written to it."""


class Lease:
    """Taken by take(), renewed by a thread until release()."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "claim"
        self.identity: dict[str, Any] = {"token": uuid.uuid4().hex, "host": platform.node()}
        self.identity |= {"machine": _machine(), "pid": (pid := os.getpid())}
        self.identity["began"] = processes.start_time(pid)
        self.file: int | None = None
        self.verified = 0.0
        self.stopping = threading.Event()

    def take(self) -> None:
        """Raises UserError where another process that lives has the folder."""
        folder = self.path.parent
        challenge = os.open(folder, os.O_RDONLY)
        try:
            # Challengers of one machine judge one after the other. Where a network disk does not
            # carry this lock, three at one moment could leave two, of which one soon notices.
            with suppress(OSError):
                fcntl.flock(challenge, fcntl.LOCK_EX)
            while not self._create():
                other = _read(self.path)
                if who := live_owner(folder):
                    raise UserError(f"output_dir: another process runs in {folder} ({who})")
                if other is not None:  # else it was released this very moment
                    self._push_aside(other)
        finally:
            os.close(challenge)
        self.verified = time.time()
        self.thread = threading.Thread(target=self._renew, args=(self.file,), daemon=True)
        self.thread.start()

    def ensure(self) -> None:
        """Raises LeaseLost where the folder is no longer ours; cheap while heartbeats continue."""
        if self.file is None or abs(time.time() - self.verified) < HEARTBEAT_SECONDS:
            return
        if (other := _read(self.path)) is None:
            time.sleep(1)  # a challenger may have pushed it aside by mistake, and puts it back
            other = _read(self.path)
        if other is None:
            raise LeaseLost(f"{self.path.parent} was removed, or the claim in it")
        if other.get("token") != self.identity["token"]:
            host = other.get("host")
            raise LeaseLost(f"{self.path.parent} was taken over by a process on {host}")
        self.verified = time.time()

    def is_held(self) -> bool:
        """Whether ensure() would pass."""
        try:
            self.ensure()
        except LeaseLost:
            return False
        return True

    def release(self) -> None:
        """Without effect where it was not taken."""
        self.stopping.set()
        if self.file is not None:
            self.thread.join()  # else it might write to what gets this file's number next
            with suppress(OSError, LeaseLost):
                self.verified = 0.0
                self.ensure()
                self.path.unlink()
            os.close(self.file)
            self.file = None

    def _create(self) -> bool:
        """Make the file with our name in it, whole from the start; False where there is one."""
        ours = self.path.with_name(f".claim.{self.identity['token']}")
        text = f"{0:<{COUNTER_BYTES}}\n" + json.dumps(self.identity) + "\n"
        file = os.open(ours, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(file, text.encode())
            os.fsync(file)
            os.link(ours, self.path)  # atomic on network disks too
        except FileExistsError:
            os.close(file)
            return False
        finally:
            ours.unlink()
        self.file = file
        return True

    def _push_aside(self, dead: dict[str, Any]) -> None:
        """Remove the file of a dead owner; a living one's that came meanwhile is put back."""
        aside = self.path.with_name(f".claim.lapsed.{self.identity['token']}")
        with suppress(FileNotFoundError):  # another challenger was faster
            os.rename(self.path, aside)
            if (_read(aside) or {}).get("token") != dead.get("token"):
                with suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink()

    def _renew(self, file: int) -> None:
        """Raise the counter in our own file: were it pushed aside, this harms nobody."""
        beats = count(1)
        while not self.stopping.wait(HEARTBEAT_SECONDS) and self.is_held():
            try:
                os.pwrite(file, f"{next(beats):<{COUNTER_BYTES}}".encode(), 0)
                os.fsync(file)
            except OSError as error:  # a full disk: others may take over, and we notice
                logger.warning("{}: {}", self.path, error.strerror)


def live_owner(*folders: Path) -> str | None:
    """'process 12 on node3' that runs in one of these folders now; None: nobody does.

    Takes up to LEASE_TIMEOUT where a last owner was on another machine, whatever the number of
    folders. Changes nothing.
    """
    if len(folders) == 1:
        return _live_owner(folders[0] / "claim")
    with ThreadPoolExecutor(max(1, len(folders))) as pool:  # which do nothing but wait
        return next(filter(None, pool.map(_live_owner, [f / "claim" for f in folders])), None)


def is_claimed(folder: Path) -> bool:
    """Whether a process of this machine that lives has the folder, or one of another machine that
    gave a sign of life in the last ten minutes: without waiting."""
    owner, age = _read(folder / "claim"), float("inf")
    with suppress(OSError):
        age = time.time() - (folder / "claim").stat().st_mtime
    if owner is None or owner.get("machine") == _machine():
        return owner is not None and pid_here(folder) is not None
    return age < SECONDS_OF_SILENCE


def pid_here(folder: Path) -> int | None:
    """The number of the process that has the folder, if it lives and is of this machine: after a
    reboot, or in another container, a number is somebody else's."""
    owner = _read(folder / "claim") or {}
    pid, began = owner.get("pid"), owner.get("began")
    is_ours = owner.get("machine") == _machine() and began is not None
    return pid if is_ours and processes.start_time(pid) == began else None


def _live_owner(path: Path) -> str | None:
    if (owner := _read(path)) is None:
        return None
    who = f"process {owner.get('pid')} on {owner.get('host')}"
    if owner.get("machine") == _machine():
        is_alive = processes.start_time(owner.get("pid")) == owner.get("began") is not None
        return who if is_alive else None
    seen = owner.get("token"), owner["beat"]
    if seen in _LAPSED:
        return None
    words = "a process on {} ran here: waiting up to {:.0f} s to see whether it still does"
    logger.warning(words, owner.get("host"), LEASE_TIMEOUT)
    until = time.monotonic() + LEASE_TIMEOUT
    while time.monotonic() < until:
        time.sleep(min(1.0, LEASE_TIMEOUT / 20))
        if (now := _read(path)) is None:
            return None
        if (now.get("token"), now["beat"]) != seen:
            return who
    if owner.get("token"):  # of a file that can be read
        _LAPSED.add(seen)
    return None


def _read(path: Path) -> dict[str, Any] | None:
    """{'beat': counter, 'token': …} of a file `claim`; None where there is none."""
    try:
        beat, _, identity = path.read_text().partition("\n")
        return {**json.loads(identity), "beat": beat}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, RecursionError):
        return {"token": None, "beat": None, "host": "an unknown machine"}


def _machine() -> str:
    """Equal for processes that see the same process numbers: this boot, this container."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
