"""What a run leaves: its folder and lease, console, stats, provenance, machine use, trackers."""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.logging.console import Progress, log_setup
    from src.logging.costs import Cost, Uses, read_account
    from src.logging.lease import live_owner
    from src.logging.own_files import is_run_folder
    from src.logging.provenance import DIFF, FROZEN, code_state, slurm_job
    from src.logging.run_folder import open_folder
    from src.logging.same_run import (
        FOUND,
        OtherRun,
        check_same_data,
        check_same_epochs,
        continued,
        folder_for,
        is_finished,
        numbered,
    )
    from src.logging.stats import Stats, read_stats, summary
    from src.logging.trackers.sync import obstacles, run_folders, send, unsent
else:
    __getattr__ = lazy_names(__name__)
