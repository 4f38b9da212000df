"""How a run runs: processes, devices, precision, checkpoints, signals, evaluation, profiling."""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.runtime.certificate import Failed, KilledRun, TooShort, plan, run_straight
    from src.runtime.checkpoint_files import BrokenState, StateFiles
    from src.runtime.checkpoint_manager import Saver
    from src.runtime.comparison import final_state, first_differences, names_of_parts
    from src.runtime.device import pick_device
    from src.runtime.distributed import World, ended, find_place, is_main_process
    from src.runtime.evaluation import Evaluation, Sums, recompute_batch_norms
    from src.runtime.launch import launch_processes, num_processes
    from src.runtime.model_files import prune, save_weights
    from src.runtime.parallel import Parallel
    from src.runtime.precision import Computing, Forward
    from src.runtime.profiling import build_profiler
    from src.runtime.signals import Signals, StopRequested
    from src.runtime.step_schedule import Timeline
    from src.runtime.stopping import Best, has_diverged, loss_limit
    from src.runtime.train_state import State
else:
    __getattr__ = lazy_names(__name__)
