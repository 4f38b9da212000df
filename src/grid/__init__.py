"""Grids of runs: job files, batch folders, Slurm and this machine, progress, messages."""

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
