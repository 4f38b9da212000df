"""Grids of runs: from a job file to runs on Slurm or on this machine, and what became of them.

submit_grid.py         what submit_multiple.py does: a job file, or -r and a batch
job_file.py            jobs/x.yaml -> name, place, and the rows of the grid, a configuration each
check.py               all that is wrong with the rows, at once
folders.py             the batch folder: names, index, spec.yaml
snapshot.py            the frozen code
repair.py              a batch that was moved, copied or damaged
local.py               rows -> worker processes here
submission.py          rows -> arrays of jobs of Slurm; a journal of what was requested
slurm.py               Slurm's commands and error texts
attempt.py             what a submit script ends in: train.py, and the request for another attempt
status.py failures.py  what became of each run, and why it failed
reports.py             how far a batch is, how long still, what failed alike, what it cost;
                       best_settings.py: its best settings; report_views.py: text, JSON, a page
notices.py             what was reported about a batch; starts messages.py, which sends it
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    # submit_multiple.py, prepare.py, train.py
    from src.grid.check import find_mistakes
    from src.grid.folders import row_identity
    from src.grid.job_file import read_job
    from src.grid.messages import notify  # send the digest of a batch, or a test message

    # report.py, analysis
    from src.grid.report_views import (
        reports_as_json,  # everything, for programs
        show_reports,  # on a terminal
        write_report_page,  # one HTML file
    )
    from src.grid.reports import read_reports  # what is known of some batches
    from src.grid.submission import SubmitOptions
    from src.grid.submit_grid import RETRYABLE, submit
else:
    __getattr__ = lazy_names(__name__)
