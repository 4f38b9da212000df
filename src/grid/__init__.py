"""Grids of runs: from a job file to runs on Slurm or on this machine, and what became of them.

submit_grid.py         what submit_multiple.py does: a job file, or a batch; it calls
start.py               its last part: runs are handed over, and what is shown and asked before
job_file.py            jobs/x.yaml -> name, place, and the rows of the grid, a configuration each
check.py               all that is wrong with the rows, at once
folders.py             the batch folder, whose format it owns: rows.jsonl, names, spec.yaml
snapshot.py            the frozen code of a batch: code/, code.2/
repair.py              a batch that was moved, copied or damaged runs where it is
local.py               rows -> worker processes here, local_display.py: how far they are
run_queue.py           which runs are free for workers, workers.py: what takes them
forks.py               what makes them cheap, and packed ones of Slurm: forks of a warm process,
                       which is fork_server.py
submission.py          rows -> arrays of jobs of Slurm; journal.py: which ones there were
slurm.py               Slurm's commands and error texts
attempt.py             what a submit script ends in: train.py, and the request for another attempt
status.py              what became of each run, and why it failed
reports.py             how far a batch is, how long still, its best settings, what failed alike,
                       what it cost; report_views.py: text, JSON, a page
notices.py             what was reported about a batch; starts messages.py, which sends it

A row is the configuration of a run. Everything is found again from the batch folder alone, so any
command may be killed and called again. Nothing here imports torch but the process that check.py
starts to look names up.
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    # submit_multiple.py, prepare.py, train.py
    from src.grid.check import find_mistakes  # all that is wrong with the keys of a run
    from src.grid.folders import row_identity  # equal for rows that ask for the same run
    from src.grid.job_file import read_job  # a job file: its name, and its runs
    from src.grid.journal import SubmitOptions  # the options of submit_multiple.py
    from src.grid.messages import notify  # send the digest of a batch, or a test message

    # report.py, analysis
    from src.grid.report_views import (
        reports_as_json,  # everything, for programs
        show_reports,  # on a terminal
        write_report_page,  # one HTML file
    )
    from src.grid.reports import read_reports  # what is known of some batches
    from src.grid.submit_grid import (
        RETRYABLE,  # what --only takes
        submit,  # all that submit_multiple.py does
    )
    from src.grid.workers import run_worker  # train runs of a batch, one after the other
else:
    __getattr__ = lazy_names(__name__)
