"""The certificate: given where resuming is right, refused where any part of it is broken."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from tqdm import tqdm
from whole_runs import certificate

import verify_resume
from src.data.splits import Split
from src.runtime import certificate as kills
from src.runtime import session
from src.runtime.certificate import Kill, KilledRun, NotCertified, Pace, TooShort, describe, plan
from tests.data.sources.written_sets import idx, seed_cache, table
from tests.forks import Fork
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[1]

# Batch norm and dropout, micro-batches, averages, an optimizer with a memory
NETWORK = {
    "model": "tiny/wrn_10_1_0.3",
    "grad_accum_steps": 2,
    "averaging": ["ema_0.9", "poly_8"],
    "optim_alg": "adam",
    "base_lr": 0.003,
    "lr_schedule": "cosine",
}
DENSE = NETWORK | {
    "dataset": "sklearn/digits",
    "clip_norm": 1.0,
    "train_length": 12,
    "save_best_checkpoint": True,
    "save_freq": 4,
}


def sparse(data_dir: Path) -> dict:
    seed_cache(data_dir, "a1a", table(3000, 123, fill=0.1), np.where(np.arange(3000) % 3, 1, -1))
    return {
        "dataset": "libsvm/a1a",
        "data_dir": str(data_dir),
        "data_download": False,
        "data_splits_map": {"train": "train[:2500]", "test": "train[2500:]"},
        "model": "linear",
        "batch_size": 20,
        "grad_accum_steps": 2,
        "averaging": ["ema_0.99", "poly_8"],
        "lr_schedule": "cosine",
        "train_length": 40,  # its steps are short, and a busy machine is late
    }


def images(data_dir: Path) -> dict:
    raw, draw = data_dir / "FashionMNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for part, n in {"train": 300, "t10k": 60}.items():
        pixels = draw.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx((np.arange(n) % 10).astype(np.uint8)))
    keys = {"dataset": "timm/torch/fashion_mnist", "data_dir": str(data_dir)}
    keys |= {"data_download": False, "num_workers": 2, "batch_size": 20, "train_length": 8}
    keys |= {"aug_pad_crop": 2, "aug_hflip": 0.5, "aug_auto": "rand-m9-mstd0.5-inc1"}
    keys |= {"aug_erase": 0.3, "aug_mixup": 0.2, "aug_cutmix": 1.0, "aug_repeats": 2}
    return NETWORK | keys


# ---- Whole certificates ------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dense", "sparse", "images"])
def test_twenty_kills_leave_no_trace(tmp_path, family):
    keys = {"dense": lambda _: DENSE, "sparse": sparse, "images": images}[family](tmp_path)
    returncode, text = certificate(keys, tmp_path)
    assert returncode == 0, text
    assert text.startswith("20 kills (7 KILL, 7 TERM, 6 USR1; ")
    parts = "weights, av, av2, optimizer, sums, " + ("best, " if family == "dense" else "")
    rows = f"{keys['train_length']} rows of stats"
    assert text.endswith(f": {parts}random generators and {rows} are equal, byte for byte\n")
    assert "in the writing of a state" in text
    assert not list((tmp_path / "temporary").glob("verify_resume.*"))


@pytest.mark.slow
def test_the_command_line_kills_processes_of_its_own(tmp_path):
    config, temporary = tmp_path / "cfg.yaml", tmp_path / "temporary"
    config.write_text(yaml.safe_dump(DENSE | {"model": "linear", "train_length": 40}))
    temporary.mkdir()
    command = [sys.executable, ROOT / "verify_resume.py", config, "--kills=3"]
    env = os.environ | {"TMPDIR": str(temporary)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 kills (1 KILL, 1 TERM, 1 USR1; ")
    assert done.stdout.endswith(" and 40 rows of stats are equal, byte for byte\n")
    assert not list(temporary.iterdir())


def without_optimizer(monkeypatch) -> None:
    monkeypatch.setattr(session, "stateful_fields", lambda learner: {"model": learner.model})


def from_the_first_batch(monkeypatch) -> None:
    batches = Split.training_batches

    def from_the_first(*arguments, first_step: int, **keys):
        return batches(*arguments, first_step=0, **keys)

    monkeypatch.setattr(Split, "training_batches", from_the_first)


@pytest.mark.parametrize("break_resuming", [without_optimizer, from_the_first_batch])
def test_what_is_left_out_of_the_state_is_found(tmp_path, monkeypatch, break_resuming):
    break_resuming(monkeypatch)
    keys = DENSE | {"model": "linear", "train_length": 40}
    returncode, text = certificate(keys, tmp_path, "--kills=3", "--seed=0")
    assert returncode == 1, text
    assert "straight and killed run differ (--seed 0):\n  weights " in text
    folder = Path(text.splitlines()[-1].removeprefix("both runs are kept in "))
    assert {"straight", "killed"} <= {path.name for path in folder.iterdir()}


LINEAR = {"model": "linear", "base_lr": [0.1, 1e6], "max_allowed_loss": 1e5, "save_freq": 20}
GRID = {
    "dataset": "sklearn/digits",
    "averaging": "ema",
    "train_length": 40,
    "seed_training": 1,
    "LIST": [LINEAR, {"model": "tiny/lenet"}],
}


def job(parameters: dict) -> dict:
    return {"job_details": {"name": "grid"}, "parameters": parameters}


def test_a_stack_that_is_killed_ends_as_its_runs_alone(tmp_path):
    """One of which diverges; what cannot be stacked is named."""
    returncode, text = certificate(job(GRID), tmp_path, "--kills=3")
    assert returncode == 0, text
    left_out, line = text.splitlines()
    assert left_out.startswith("left out, 002: stacks of networks agree to rounding")
    assert line.startswith("3 kills (1 KILL, 1 TERM, 1 USR1; ")
    what = "weights, av, optimizer, sums, random generators and stats"
    assert line.endswith(f": of 2 runs in 1 stack, and alone, {what} are equal, byte for byte")


def test_what_a_stack_does_not_bring_back_is_found(tmp_path, monkeypatch):
    from_the_first_batch(monkeypatch)
    returncode, text = certificate(job(GRID | {"LIST": [LINEAR]}), tmp_path, "--kills=3")
    assert returncode == 1, text
    assert "straight and killed run differ" in text
    assert "\n  run 000: weights " in text


@pytest.mark.slow
def test_kills_are_spread_over_the_stacks_of_a_job(tmp_path):
    blocks = [LINEAR | {"base_lr": [0.1, 0.2, 1e6], "batch_size": [50, 80]}]
    returncode, text = certificate(job(GRID | {"LIST": blocks}), tmp_path, "--kills=20")
    assert returncode == 0, text
    assert text.startswith("20 kills (")
    assert ": of 6 runs in 2 stacks, and alone, weights, " in text


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        (
            GRID | {"LIST": [{"model": "tiny/lenet"}]},
            "{job}: no run can be trained in a stack: stacks of networks",
        ),
        (GRID | {"engine": "ordinary"}, "{job}: no run can be trained in a stack: engine: ordi"),
        (GRID | {"modle": "linear"}, "modle='linear': there is no such key; did you mean 'model'"),
        ({"model": []}, "parameters.model: got []"),
    ],
)
def test_a_job_of_which_nothing_can_be_shown_is_one_line(tmp_path, parameters, line):
    returncode, text = certificate(job(parameters), tmp_path)
    assert returncode == 2
    assert text.startswith(line.format(job=tmp_path / "cfg.yaml")), text
    assert text.count("\n") == 1
    assert not list((tmp_path / "temporary").iterdir())


def test_a_run_too_short_is_no_certificate(tmp_path):
    keys = DENSE | {"model": "linear", "train_length": 2}
    returncode, text = certificate(keys, tmp_path)
    assert (returncode, text) == (
        1,
        "a run of 30 steps: too short for 20 kills; take a longer train_length, or fewer --kills\n",
    )
    assert not list((tmp_path / "temporary").glob("verify_resume.*"))


@pytest.mark.slow
def test_ctrl_c_ends_the_run_and_removes_its_folder(tmp_path):
    config, temporary = tmp_path / "cfg.yaml", tmp_path / "temporary"
    config.write_text(yaml.safe_dump(DENSE | {"train_length": 10_000}))
    temporary.mkdir()
    env = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, ROOT / "verify_resume.py", config]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        while not (logs := list(temporary.glob("*/straight/training.log"))):
            time.sleep(0.02)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=PATIENCE)[1] == "interrupted\n"
    assert process.returncode == 130
    assert not logs[0].exists()
    assert not list(temporary.iterdir())


# ---- Its parts ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_kills", [1, 2, 3, 7, 20, 50])
def test_a_plan_has_each_signal_and_moment(num_kills):
    planned = plan(num_kills, range(100, 5100, 100), random.Random(0))
    signals = Counter(kill.signal for kill in planned)
    assert sum(signals.values()) == num_kills
    assert max(signals.values()) - min(signals[number] for number in kills.SIGNALS) <= 1
    assert [kill.step for kill in planned] == sorted(kill.step for kill in planned)
    assert planned[-1].step < 0.8 * 5000
    moments = Counter(kill.moment for kill in planned)
    assert {moments[m] for m in kills.MOMENTS if m != kills.TRAINING} == {num_kills // 5}
    of_writing = {kill.signal for kill in planned if kill.moment == kills.WRITING}
    assert of_writing <= {signal.SIGKILL}


def test_few_epochs_are_not_all_spent_on_waiting_for_their_ends():
    moments = Counter(kill.moment for kill in plan(20, [100, 200, 300], random.Random(0)))
    assert moments[kills.EVALUATION] == 1
    with pytest.raises(TooShort, match="a run of 119 steps: too short for 20 kills"):
        plan(20, [119], random.Random(0))


def test_a_fork_that_is_killed_while_it_draws_a_bar_stops_no_other(tmp_path):
    def die() -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    tqdm.write("", end="")  # makes the lock
    with open(tmp_path / "output", "wb") as output:
        assert Fork(die, output).wait() == -signal.SIGKILL
    with tqdm.get_lock():  # else it waits for ever
        pass


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """killed(script, signal): a run of that script instead of train.py, killed once."""

    def attempt(script: str, number: signal.Signals) -> KilledRun:
        fake = tmp_path / "fake.py"
        fake.write_text(script)
        (tmp_path / "killed").mkdir()
        monkeypatch.setattr(kills, "TRAIN", fake)
        pace = Pace(startup=0.0, evaluation=0.0, epoch_ends=[10, 20])
        moment = kills.TRAINING if "state" in script else kills.STARTUP
        kill, config = Kill(number, moment, 0.0), tmp_path / "cfg.yaml"
        run = KilledRun(tmp_path / "killed", config, pace, [kill], random.Random(0))
        run.attempt(0)
        return run

    return attempt


STATE = """
import pathlib, signal, sys, time
state = pathlib.Path(sys.argv[3].partition("=")[2].strip('"')) / "state"
"""
SAVES = """
state.mkdir()
for number in range(1, 3000):
    (state / f"{number:09d}.state").touch()
    time.sleep(0.02)
"""


def test_a_kill_that_did_what_it_should(killed):
    run = killed("import time; time.sleep(60)", signal.SIGTERM)
    assert describe([run]) == "1 kills (1 TERM; 1 in start-up)"


def test_an_attempt_that_dies_by_itself_shows_its_end(killed):
    script = STATE + "print('about to fail'); raise ValueError('the cause')"
    with pytest.raises(NotCertified, match=r"attempt 1, SIGUSR1: exit code 1:\n(?s:.)*the cause"):
        killed(script, signal.SIGUSR1)


def test_a_wrong_exit_code_after_a_signal(killed):
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))"
    with pytest.raises(NotCertified, match="attempt 1, SIGTERM: exit code 3"):
        killed(STATE + handler + SAVES, signal.SIGTERM)


def test_a_run_that_ignores_its_signal(killed, monkeypatch):
    monkeypatch.setattr(kills, "SECONDS_TO_END", 0.2)
    ignored = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    with pytest.raises(NotCertified, match="SIGTERM: still running after 0 s"):
        killed(STATE + ignored + SAVES, signal.SIGTERM)


def test_a_run_that_is_over_before_its_kill(killed):
    with pytest.raises(TooShort, match="the run ended after 0 kills: too short for 1 kills"):
        killed(STATE, signal.SIGKILL)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--kills", "0"], "--kills: got 0, expected a whole number from 1 up"),
        (["modle=linear"], "modle='linear': there is no such key; did you mean 'model'? All keys"),
        (["--output", "{full}"], "--output: {full} is not empty"),
        (["--times", "3"], "unrecognized arguments: --times"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, arguments, line):
    (tmp_path / "cfg.yaml").write_text("model: linear\n")
    given = [text.format(full=tmp_path) for text in arguments]
    assert verify_resume.main([str(tmp_path / "cfg.yaml"), *given]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(line.format(full=tmp_path))
    assert shown.count("\n") == 1
