"""How a run runs: everything around training that no idea changes, behind one Session.

session.py             the order of set-up, the loop's epochs and batches, what happens after a step
command_line.py        of train.py: one process, or one a GPU that it starts and watches
names.py               the names that --list shows
distributed.py         the processes of a run and the messages between them
parallel.py            one model over them: DDP, FSDP2, DataParallel
precision.py           the device, floats, memory format, torch.compile
train_state.py         everything that is saved; which fields of a Learner are state
checkpoints.py         its files, verified when they are read; when it is saved; weights
earlier_run.py         load_run: an earlier run as an object, as a teacher or in a notebook
signals.py             Slurm's signals and Ctrl-C, acted upon between two steps
evaluation.py          Metrics that stay on the device; one pass over a split
run_length.py          when it ends: epochs and samples in steps, early stopping, divergence
throughput.py          examples a second, fraction of the peak FLOP/s; profile: where time goes
certificate.py         runs that verify_resume.py kills, and where their folders differ
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.runtime.certificate import NotCertified, certify  # verify_resume.py
    from src.runtime.checkpoints import MAX_COST  # of saving states, a part of the time
    from src.runtime.command_line import run_command_line  # of train.py
    from src.runtime.earlier_run import load_run  # config, model with its weights, stats of a run
    from src.runtime.evaluation import (
        Metrics,  # the sums of an epoch
        in_line,  # metrics in a line of the log
    )
    from src.runtime.session import (
        Epoch,  # the training between two evaluations
        Session,  # everything around training
        Shared,  # by runs that one process trains together
    )
    from src.runtime.signals import StopRequested  # raised between two steps
else:
    __getattr__ = lazy_names(__name__)
