"""Grids of runs: job files, batch folders, Slurm and this machine, progress, messages."""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.grid.check import MOST_LINES, check_rows, check_slurm, errors_of
    from src.grid.expand import Grid, expand_grid, read_grid
    from src.grid.failures import KINDS, group_rows, headline, short_path, shown
    from src.grid.folders import (
        Batch,
        Plan,
        Row,
        batch_name,
        check_writable,
        count_rows,
        delete_batch,
        only_here,
        open_batch,
        plan_batch,
        write_batch,
    )
    from src.grid.identity import row_identity, same
    from src.grid.job_file import Job, read_job, try_job
    from src.grid.journal import LOCAL, Asked, Journal
    from src.grid.local import ENDS, Machine, default_jobs, run_rows
    from src.grid.notify.address import has_address, send, unreadable
    from src.grid.notify.digest import body_of, picture_of, report_of, title_of
    from src.grid.notify.digest_job import submit_digest
    from src.grid.notify.notices import Notices, start_sending, wait_until_sent
    from src.grid.progress import RESULTS, Best, Report, chosen_batches, cost_in_words, reports
    from src.grid.ranking import SEEDS, WITHOUT_EFFECT, Run, Standing, rank
    from src.grid.repair import repair_batch
    from src.grid.slurm.commands import Options, QueuedJob, check_installed, is_job_id
    from src.grid.slurm.submission import Submission, unfinished_folder, unsubmitted
    from src.grid.snapshot import changed_since_last_copy, freeze, frozen_copies, next_copy
    from src.grid.status import (
        STATES,
        RowStatus,
        ask_queue,
        count_states,
        read_journal,
        row_statuses,
    )
else:
    __getattr__ = lazy_names(__name__)
