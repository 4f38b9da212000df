"""What a run leaves behind: its folder, and everything in it but the training state.

run_folder.py   the folder as a context: opened, written and closed; which files in it are ours
same_run.py     whether a configuration asks for the run that a folder holds; folders for new runs
lease.py        file `claim`: one live process owns a folder
records.py      training.log, the bar on a terminal, stats.csv and arrays/: one row an epoch
machine_use.py  system.csv: cores, memory, disk, network, GPUs, every few seconds; what it costs
provenance.py   provenance.json, uncommitted.diff: code, packages, command, machine
trackers.py     wandb, Comet, TensorBoard, trackio: a class each
tracker_processes.py   other processes, which follow the folder and log to those; `report.py sync`

A run opens its RunFolder, which takes the lease, opens the log, and starts the thread of
machine_use and the processes of trackers. The folder asks same_run whether an earlier attempt
may be resumed. Nothing here imports torch, and pandas only what reads or writes stats.csv.
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.logging import lease  # who runs in a folder now
    from src.logging.machine_use import (
        Cost,  # core-seconds and GPU-seconds, of a run or a sum of them
        Uses,  # which processes and GPUs a run has
    )
    from src.logging.provenance import CodeState  # a commit and the edits since, of a code folder
    from src.logging.records import (
        Stats,  # the rows of stats.csv, a part of the training state; reads the file
        summarize_run,  # what a run has reached, in a few lines
    )
    from src.logging.run_folder import RunFolder  # a context: all that a run writes
    from src.logging.same_run import (
        OtherRun,  # the error where a folder holds another run
        choose_folder,  # for a run that was given none
        free_folder,  # where the same run could be done again
        is_finished,  # whether a folder holds the finished run of a configuration
    )
    from src.logging.tracker_processes import sync_runs  # send what was kept offline
else:
    __getattr__ = lazy_names(__name__)
