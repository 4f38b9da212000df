"""How a run runs: processes, devices, precision, checkpoints, signals, evaluation, profiling."""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.runtime.certificate import (
        Failed,
        KilledRun,
        TooShort,
        final_state,
        first_differences,
        names_of_parts,
        plan,
        run_straight,
    )
    from src.runtime.checkpoint_files import CorruptCheckpoint
    from src.runtime.command_line import run_command_line
    from src.runtime.evaluation import Metrics
    from src.runtime.session import Session
else:
    __getattr__ = lazy_names(__name__)
