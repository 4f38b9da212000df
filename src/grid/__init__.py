"""Grids of runs: from a job file to runs on Slurm or on this machine, and what became of them.

submit_grid.py         what submit_multiple.py does: a job file, or -r and a batch
job_file.py            jobs/x.yaml -> name, place, and the rows of the grid, a configuration each
check.py               all that is wrong with the rows, at once
folders.py             the batch folder: names, index, spec.yaml
snapshot.py            the frozen code
journal.py             what was requested of Slurm, written before and after
repair.py damage.py    a batch that was moved, copied or damaged
local.py               rows -> worker processes here
slurm/                 submission, commands; attempt.py: what a submit script ends in; requeue.py
status.py failures.py  what became of each row, and why it failed
progress.py            how far, how long still, the best settings
notify/                messages about batches
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    # submit_multiple.py, prepare.py, train.py
    from src.grid.check import find_mistakes

    # report.py, analysis
    from src.grid.failures import headline, short_path, shown
    from src.grid.folders import row_identity
    from src.grid.job_file import read_job
    from src.grid.journal import SubmitOptions
    from src.grid.notify.address import send
    from src.grid.notify.digest import body_of, picture_of, report_of, title_of
    from src.grid.progress import RESULTS, Best, Report, chosen_batches, cost_in_words, reports
    from src.grid.status import STATES, RowStatus
    from src.grid.submit_grid import RETRYABLE, submit
else:
    __getattr__ = lazy_names(__name__)
