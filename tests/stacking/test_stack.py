"""Runs that are trained together: each is the run that it is alone, whatever happens to others."""

import json
import os
import random
import signal
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
import pytest
import torch

from src.config import make_config
from src.logging import Stats
from src.logging.run_folder import RunFolder
from src.losses import LOSSES, CrossEntropy
from src.optim.optimizers import OPTIMIZERS
from src.runtime.checkpoints import CheckpointFiles
from src.runtime.signals import StopRequested
from src.stacking import stackable, stacked_generator
from src.stacking.learner import StackedLinear
from src.stacking.stackable import BY_ROW, DIGEST, REPLACED, code_digest
from src.support import ROOT, UserError, processes
from tests.data.sources.written_sets import seed_cache, table
from tests.forks import Fork
from tests.whole_runs import end_of, killed_in_steps, without_times
from train import experiment_generator, run_experiment

COMMON = {
    "dataset": "sklearn/digits",
    "data_splits_map": {"train": "train[:600]", "val": "train[600:700]", "test": "train[700:]"},
    "model": "linear",
    "batch_size": 70,
    "train_length": 4,
    "seed_training": 3,
    "save_plot": False,
    "system_interval": 0,
    "engine": "stacked",
}
ORDINARY = {"engine": "ordinary"}
# Of all that may differ in a stack; one diverges, one stops early
ROWS = [
    {"base_lr": 0.1, "averaging": ["ema", "poly_2"], "seed_model": 1},
    {"base_lr": 1.0, "averaging": ["ema_0.5", "poly"], "seed_model": 2, "weight_decay": 0.01},
    {"base_lr": 0.1, "momentum": 0.0, "averaging": ["ema", "ema_0.3"], "label_smoothing": 0.1},
    {"base_lr": 1e6, "averaging": ["poly", "ema"], "max_allowed_loss": 1e5},
    {"base_lr": 0.3, "averaging": ["ema", "poly"], "lr_schedule": "cosine", "warmup_steps": 5},
    {"base_lr": 0.2, "averaging": ["ema", "poly"], "clip_norm": 0.5, "model_head_init": "zero"},
    {"base_lr": 0.2, "averaging": ["ema", "poly"], "clip_value": 0.01, "weight_decay_biases": 0.1},
    {
        "base_lr": 1e-9,
        "averaging": ["ema", "poly"],
        "early_stopping_patience": 1,
        "best_checkpoint_metric": "val/last/accuracy",
    },
]


def configs_of(folder: Path, rows=ROWS, **keys) -> list:
    return [
        make_config(
            COMMON | {"seed_model": 0} | row | keys | {"output_dir": str(folder / str(number))}
        )
        for number, row in enumerate(rows)
    ]


def train_together(configs) -> tuple:
    """The last that it yields: the stats of each, the models."""
    *_, last = [None, *stacked_generator(configs)]
    return last


def outcomes(folder: Path) -> list[str]:
    paths = sorted(folder.iterdir(), key=lambda path: int(path.name))
    return [json.loads((path / "done").read_text())["outcome"] for path in paths]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> list[dict]:
    """How each of ROWS ends that is trained by itself, in the same engine."""
    configs = configs_of(tmp_path_factory.mktemp("alone"))
    for config in configs:
        run_experiment(config)
    return [end_of(config) for config in configs]


def test_rows_end_as_the_runs_alone_do(alone, tmp_path):
    """To the bit: weights, averages, optimizer, sums, stats. One diverges in an epoch, one stops
    early: the others train on without them."""
    configs = configs_of(tmp_path)
    train_together(configs)
    assert [end_of(config) for config in configs] == alone
    expected = ["finished"] * len(ROWS)
    expected[3], expected[7] = "diverged", "early_stopped"
    assert outcomes(tmp_path) == expected
    assert [len(Stats.read(tmp_path / str(n))) for n in range(8)] == [4, 4, 4, 1, 4, 4, 4, 2]


@pytest.mark.parametrize("rows", [[5, 3, 0], [7], [6, 4, 2, 1]])
def test_neither_number_nor_order_of_rows_matters(alone, tmp_path, rows):
    configs = configs_of(tmp_path, [ROWS[row] for row in rows])
    train_together(configs)
    assert [end_of(config) for config in configs] == [alone[row] for row in rows]


def test_what_evaluations_measure_does_not_depend_on_the_stack(tmp_path):
    """Numbers and arrays, of batches and of whole splits."""
    own = ["class_accuracy", "confusion", "tests.own_metrics:margin", "tests.own_metrics:agreement"]
    rows, keys = [ROWS[n] for n in (0, 3, 5)], {"metrics": own, "train_length": 2}
    together, alone = (configs_of(tmp_path / name, rows, **keys) for name in ("all", "each"))
    train_together(together)
    for config in alone:
        run_experiment(config)
    assert [end_of(config) for config in together] == [end_of(config) for config in alone]
    names = [{path.name for path in (tmp_path / x / "0/arrays").iterdir()} for x in ("all", "each")]
    assert names[0] == names[1]
    assert len(names[0]) == 12  # two arrays of two splits with three models
    for path in (tmp_path / "all/0/arrays").iterdir():
        assert path.read_bytes() == (tmp_path / "each/0/arrays" / path.name).read_bytes()
    assert len(Stats.read(tmp_path / "all/0")["val/av2/margin"].unique()) == 2


@pytest.mark.parametrize("optim_alg", ["sgd", "adam", "adamw", "amsgrad", "amsgradw"])
def test_the_ordinary_path_agrees_to_rounding(tmp_path, optim_alg):
    rates = (0.1, 0.01) if optim_alg == "sgd" else (0.01, 0.001)
    keys = {"optim_alg": optim_alg, "averaging": "ema", "weight_decay": 0.01, "clip_norm": 1.0}
    rows = [{"base_lr": rate, "seed_model": 4} for rate in rates]
    stats, models = train_together(configs_of(tmp_path / "stacked", rows, **keys))
    for number, config in enumerate(configs_of(tmp_path / "alone", rows, **keys, **ORDINARY)):
        *_, (expected, model) = experiment_generator(config)
        pd.testing.assert_frame_equal(
            without_times(stats[number]), without_times(expected), rtol=1e-5
        )
        for mine, theirs in zip(models[number].parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        folders = [tmp_path / kind / str(number) / "state" for kind in ("stacked", "alone")]
        own, expected = (CheckpointFiles(folder).newest()["parts"] for folder in folders)
        assert own.keys() == expected.keys()
        assert own["av"]["t"] == expected["av"]["t"] == 36


def test_several_processes_are_refused(tmp_path, monkeypatch):
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match="engine: got 'stacked', expected ordinary, as 2 processes"):
        train_together(configs_of(tmp_path, ROWS[:1]))


@pytest.mark.parametrize(
    "keys",
    [
        {"loss": "mse"},
        {"loss": "mse", "dataset": "sklearn/diabetes", "data_normalize": "columns"},
        {"model": "linear/no_bias", "loss_class_weights": [1.0] * 5 + [2.0] * 5},
        {"batch_size": 600, "steps_per_epoch": 3, "train_length": 2.5},
        {"train_length": 0},
        {"grad_accum_steps": 7},
        {"loss": "bce", "dataset": "tests.own_parts:read_labels"},
        {"metrics": ["top5_accuracy", "tests.own_metrics:margin", "tests.own_metrics:agreement"]},
    ],
)
def test_other_losses_and_lengths_agree_as_well(tmp_path, keys):
    if "dataset" in keys:
        keys = keys | {"data_splits_map": {"train": "train[:70%]", "test": "train[70%:]"}}
    rows = [{"base_lr": rate} for rate in (0.1, 0.03)]
    stats, _ = train_together(configs_of(tmp_path / "stacked", rows, **keys))
    for number, config in enumerate(configs_of(tmp_path / "alone", rows, **keys, **ORDINARY)):
        expected = run_experiment(config)
        assert list(stats[number].columns) == list(expected.columns)
        pd.testing.assert_frame_equal(
            without_times(stats[number]), without_times(expected), rtol=1e-5
        )


# ---- Interrupted -------------------------------------------------------------------------


def kill_randomly(configs, seed: int) -> int:
    """Start the stack again until all is done, killing it at random; how many attempts it took."""

    def main() -> int:
        left = [x for x in configs if not (Path(x.output_dir) / "done").exists()]
        try:
            train_together(left)
        except StopRequested:
            return 75
        return 0

    return killed_in_steps(main, random.Random(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_killed_stack_ends_as_the_runs_alone_do(alone, tmp_path, monkeypatch, seed):
    """States are saved often, so that rows are killed with states of different steps."""
    configs = configs_of(tmp_path, checkpoint_minutes=1e-6)
    assert kill_randomly(configs, seed) > 3
    assert [end_of(config) for config in configs] == alone


def test_rows_that_were_saved_at_different_steps_join(alone, tmp_path):
    """One has made an epoch and a half alone, one an epoch, the others nothing."""
    configs = configs_of(tmp_path)
    for number, epochs in {0: 2, 5: 1}.items():
        generator = experiment_generator(configs[number])
        for _ in range(epochs):
            next(generator)
        generator.close()
    train_together(configs)
    assert [end_of(config) for config in configs] == alone


def test_rows_go_on_at_their_own_step_where_all_before_them_have_left(alone, tmp_path):
    """One has two epochs behind it; the other diverges in its first."""
    configs = configs_of(tmp_path, [ROWS[0], ROWS[3]])
    generator = experiment_generator(configs[0])
    next(generator), next(generator)
    generator.close()
    train_together(configs)
    assert [end_of(config) for config in configs] == [alone[0], alone[3]]


def test_what_was_read_last_survives_a_stop(tmp_path, monkeypatch):
    """Divergence is judged by the steps since then. Stopped after 15 steps, again after 16."""
    (config,) = configs_of(tmp_path, ROWS[:1], steps_per_epoch=30)
    whole, read = StackedLinear.step, []
    for number in (15, 1):

        def step(self, *arguments, left=[number]) -> None:  # noqa: B006 - counts down
            whole(self, *arguments)
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(StackedLinear, "step", step)
        with pytest.raises(StopRequested):
            run_experiment(config)
        state = CheckpointFiles(tmp_path / "0" / "state").newest()
        read.append((state["step"], state["parts"]["sums"]["read"]))
    assert [step for step, _ in read] == [15, 16]
    assert read[0][1] == read[1][1]
    assert read[0][1]["loss"][1] == 600 + 70  # nine steps go once through the data


def test_a_signal_saves_all_rows_between_two_steps(alone, tmp_path):
    configs = configs_of(tmp_path)
    epochs = stacked_generator(configs)
    next(epochs)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StopRequested) as stop:
        next(epochs)
    assert stop.value.message == "stopped by SIGTERM at step 10 of 36, saved"
    assert [len(Stats.read(tmp_path / str(n))) for n in range(8)] == [1] * 8
    states = [json.loads((tmp_path / str(n) / "status.json").read_text()) for n in range(8)]
    assert {state["state"] for state in states} == {"stopped", "done"}
    left = [x for x in configs if not (Path(x.output_dir) / "done").exists()]
    train_together(left)
    assert [end_of(config) for config in configs] == alone


def test_a_program_may_leave_early(alone, tmp_path):
    configs = configs_of(tmp_path)
    for _ in stacked_generator(configs):
        break
    assert json.loads((tmp_path / "0" / "status.json").read_text())["state"] == "left"
    train_together([x for x in configs if not (Path(x.output_dir) / "done").exists()])
    assert [end_of(config) for config in configs] == alone


def test_rows_that_were_killed_before_they_closed_are_closed(alone, tmp_path):
    configs = configs_of(tmp_path, ROWS[:3])
    train_together(configs)
    for number in (0, 2):
        (tmp_path / str(number) / "done").unlink()
    stats = run_experiment(configs[0])
    assert len(stats) == 4
    (last, _) = train_together(configs[2:])
    assert len(last) == 1
    assert outcomes(tmp_path) == ["finished"] * 3
    assert [end_of(config) for config in configs] == alone[:3]


def killed_before_done(main) -> None:
    """main() in a fork that is killed when the first of its runs has saved its last state."""

    def killed() -> None:
        RunFolder.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        main()

    with open(os.devnull, "wb") as output:
        assert Fork(killed, output).wait() == -signal.SIGKILL


@pytest.mark.parametrize("engine", ["ordinary", "stacked"])
def test_a_run_that_has_diverged_in_an_epoch_is_closed_after_a_kill(tmp_path, engine):
    """It is no run that was made longer, as it ends with a part of an epoch."""
    (config,) = configs_of(tmp_path, ROWS[3:4], engine=engine, log_interval=1)
    killed_before_done(lambda: run_experiment(config))
    assert len(run_experiment(config)) == 1
    assert outcomes(tmp_path) == ["diverged"]


def test_stats_that_were_not_written_yet_are_in_the_state(alone, tmp_path):
    """The last state is saved before them."""
    configs = configs_of(tmp_path, ROWS[:2])
    killed_before_done(lambda: train_together(configs))
    stats = tmp_path / "0" / "stats.csv"
    stats.write_text("".join(stats.read_text().splitlines(keepends=True)[:3]))  # as by the clock
    train_together(configs)
    assert [end_of(config) for config in configs] == alone[:2]


def test_rows_that_have_diverged_in_an_epoch_are_closed_after_a_signal(tmp_path, monkeypatch):
    """While the others train on to its end."""
    configs = configs_of(tmp_path, [ROWS[3], ROWS[0]], log_interval=1)
    whole = StackedLinear.step

    def step(self, number, *arguments) -> None:
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        whole(self, number, *arguments)

    monkeypatch.setattr(StackedLinear, "step", step)
    with pytest.raises(StopRequested):
        train_together(configs)
    monkeypatch.undo()
    train_together(configs)
    assert outcomes(tmp_path) == ["diverged", "finished"]


@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_row_that_fails_does_not_end_the_others(alone, tmp_path, moment):
    """Its folder holds another run, or is taken away while the stack trains."""
    configs = configs_of(tmp_path)
    folders = [tmp_path / str(number) for number in range(8)]
    if moment == "before":
        run_experiment(make_config(COMMON | {"output_dir": str(folders[0]), "base_lr": 7}))
    epochs = stacked_generator(configs)
    stats, models = next(epochs)
    assert (len(stats[0]), models[0] is None) == ((0, True) if moment == "before" else (1, False))
    if moment == "while":
        (folders[0] / "claim").write_text("0\n" + json.dumps({"token": "x", "host": "node9"}))
        look_at_the_lease(epochs)
    with pytest.raises(UserError, match="taken over" if moment == "while" else "finished run"):
        list(epochs)
    assert [end_of(config) for config in configs[1:]] == alone[1:]


def look_at_the_lease(epochs) -> None:
    """At the next write, not some seconds later."""
    for row in epochs.gi_frame.f_locals["stack"].rows:
        row._folder.lease.verified = 0.0


def test_the_other_engine_does_not_resume(tmp_path):
    (config,) = configs_of(tmp_path, ROWS[:1], engine="ordinary")
    generator = experiment_generator(config)
    next(generator)
    generator.close()
    with pytest.raises(UserError, match="holds an unfinished run that differs in engine"):
        train_together(configs_of(tmp_path, ROWS[:1]))


# ---- Folders -----------------------------------------------------------------------------


def test_each_row_has_the_folder_of_a_run_alone(tmp_path):
    both = configs_of(tmp_path, ROWS[:2], save_freq=2, save_best_checkpoint=True)
    train_together(both)
    run_experiment(make_config(COMMON | ROWS[0] | {"output_dir": str(tmp_path / "alone")}))
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    for config in both:
        own = Path(config.output_dir)
        assert {path.name for path in own.iterdir()} == names | {"checkpoints"}
        assert len(list((own / "checkpoints").glob("*.pt"))) == 3
        log = (own / "training.log").read_text()
        assert log.count("test/av2") == 4
        assert log.count("epoch 2 | step 18/36") == 1
        place = json.loads((own / "provenance.json").read_text())["stack"]
        assert place == {"number": int(own.name), "runs": 2}
        assert CheckpointFiles(own / "state").newest()["step"] == 36


def test_a_row_costs_its_part_of_the_stack(tmp_path):
    before = process_time()
    train_together(configs_of(tmp_path, ROWS[4:7], train_length=50))
    used = process_time() - before
    paths = tmp_path.glob("?/status.json")
    costs = [json.loads(path.read_text())["cost"]["current"]["cost"] for path in paths]
    assert len(costs) == 3
    assert used / 10 < sum(cost["core_seconds"] for cost in costs) < used


# ---- What cannot be stacked --------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"model": "timm/vit"},
            "model: got 'timm/vit', expected linear, linear/no_bias, tiny/NAME",
        ),
        ({"optim_alg": "timm/lamb"}, "optim_alg: got 'timm/lamb', expected sgd, adam"),
        ({"optim_args": {"maximize": True}}, "optim_args: got"),
        ({"precision": "bf16"}, "precision: got 'bf16', expected 'fp32' with engine=stacked"),
        ({"averaging": "my:own"}, "averaging: got 'my:own'"),
        ({"loss": "my_losses:Focal"}, "loss: got 'my_losses:Focal', expected log, mse or bce"),
        ({"model": "tiny/lenet", "channels_last": True}, "channels_last: got True, expected False"),
        ({"model": "a:b", "averaging_bn": "recompute"}, "averaging_bn: got 'recompute', expected"),
        ({"model": "tiny/lenet", "precision": "bf16"}, "precision: got 'bf16', expected 'fp32'"),
        ({"seed_training": None}, "seed_training: got None, expected a number with engine=stacked"),
    ],
)
def test_what_cannot_be_stacked_is_named_before_anything_is_written(tmp_path, keys, words):
    configs = configs_of(tmp_path, [{"base_lr": 0.1} | keys])
    with pytest.raises(UserError, match=words):
        train_together(configs)
    assert not list(tmp_path.iterdir())


def test_rows_that_differ_elsewhere_do_not_share_a_stack(tmp_path):
    with pytest.raises(UserError, match=r"seed_training, batch_size: .* cannot share a stack"):
        train_together(configs_of(tmp_path, [{}, {"batch_size": 71, "seed_training": 4}]))


def test_sparse_data_are_written_out_where_they_have_few_features(tmp_path):
    names = {"few": 40, "many": 3000}
    rows = [{"base_lr": 0.1}, {"base_lr": 1.0}]
    keys = {"dataset": "libsvm/a1a", "data_splits_map": {"train": "train"}, "train_length": 2}
    draw = np.random.default_rng(0)
    for name, width in names.items():
        (tmp_path / name).mkdir()
        seed_cache(tmp_path / name, "a1a", table(60, width, fill=0.1), draw.integers(2, size=60))
    keys["data_dir"] = str(tmp_path / "few")
    stats, _ = train_together(configs_of(tmp_path / "stacked", rows, **keys))
    for number, config in enumerate(configs_of(tmp_path / "alone", rows, **keys, **ORDINARY)):
        expected = without_times(run_experiment(config))
        pd.testing.assert_frame_equal(without_times(stats[number]), expected, rtol=1e-5)
    keys["data_dir"] = str(tmp_path / "many")
    with pytest.raises(UserError, match="as the data are sparse, with 3,000 features"):
        train_together(configs_of(tmp_path / "refused", rows, **keys))


def test_every_key_that_may_differ_exists():
    assert set(vars(make_config({}))) >= BY_ROW


def test_changes_of_what_stacks_replace_are_noticed(tmp_path, monkeypatch):
    """Whoever changes such a function: does a stack do the same? Then change DIGEST. Comments and
    docstrings may change."""
    assert code_digest() == DIGEST
    for path in REPLACED:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text((ROOT / path).read_text())
    monkeypatch.setattr(stackable, "ROOT", tmp_path)

    def changed(old: str, new: str) -> bool:
        path = tmp_path / "train.py"
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))
        found = code_digest.__wrapped__() != DIGEST
        path.write_text(text)
        return found

    assert not changed("One optimizer step on one batch", "A step")
    assert not changed("    scaler.step(optimizer)\n", "    scaler.step(optimizer)  # now\n\n")
    assert changed("    scaler.step(optimizer)\n", "    scaler.step(optimizer, 1)\n")
    assert changed("    scaler: torch.amp", "    teacher: nn.Module\n    scaler: torch.amp")


class Focal(CrossEntropy):
    """As a fork may put into the table."""


@pytest.mark.parametrize(
    ("table", "name", "entry", "words"),
    [
        (LOSSES, "log", Focal, "stacks have no Focal"),
        (OPTIMIZERS, "sgd", (torch.optim.Rprop, {}), "stacks have no Rprop"),
    ],
)
def test_what_a_fork_puts_into_a_table_is_not_replaced(
    tmp_path, monkeypatch, table, name, entry, words
):
    monkeypatch.setitem(table, name, entry)
    with pytest.raises(UserError, match=words):
        train_together(configs_of(tmp_path, ROWS[:1]))


def test_a_fork_with_another_step_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(stackable, "DIGEST", "another")
    with pytest.raises(UserError, match="as code was changed that stacks do not call"):
        train_together(configs_of(tmp_path, ROWS[:1]))


def test_a_stack_larger_than_memory_is_refused_in_a_line(tmp_path, monkeypatch):
    """650 numbers a row, seven times: weights, two tensors of the optimizer, gradients, copies."""
    size = 4 * 650 * 7 * 2
    for free, is_enough in ((size, True), (size - 1, False)):
        monkeypatch.setattr(processes, "free_memory", lambda _=None, free=free: free)
        configs = configs_of(tmp_path / str(is_enough), ROWS[:2], averaging=None, train_length=0)
        if is_enough:
            train_together(configs)
            continue
        words = r"2 runs together take 0\.0 MB of memory, of which 0\.0 MB are free: .*--stack N"
        with pytest.raises(UserError, match=words):
            train_together(configs)
