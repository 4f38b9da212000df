"""What every folder uses: errors for users, files, processes, limits, random states."""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.support.child_processes import PASSED_ON, hold_signals, run_programs
    from src.support.errors import (
        OneLineParser,
        UserError,
        bad_value,
        closest,
        cut,
        key_shown,
        pick,
        shown,
        split_family,
        unknown_name,
    )
    from src.support.files import ROOT, write_atomically
    from src.support.limits import THIS_PROCESS, Uses, memories, num_cores, num_whole_cores
    from src.support.processes import LAUNCHER, ProcessorTime, began, seconds_since_start
    from src.support.random_state import Generators, generators_kept, seed_cpu, seed_everything
else:
    __getattr__ = lazy_names(__name__)
