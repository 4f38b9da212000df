"""Waiting for what another process or thread does, on a machine whose cores may be busy."""

import time
from collections.abc import Callable

PATIENCE = 600.0  # seconds: a slow machine is not wrong; below the limit of a single test


def wait_until(holds: Callable[[], object], process=None) -> None:
    """Until holds() is true; fails where the process that is to bring it about ends first."""
    until = time.monotonic() + PATIENCE
    while not holds():
        assert process is None or process.poll() is None, "the process has ended"
        assert time.monotonic() < until, "waited for nothing"
        time.sleep(0.02)
