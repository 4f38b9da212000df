"""check_rows: what is reported of rows that can't run, and which names exist."""

import io
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from loguru import logger

from src.config import KEYS, make_config
from src.grid import check
from src.grid.check import QUESTIONS, check_rows, distinct_questions

ROOT = Path(__file__).parents[2]


@pytest.fixture
def warnings():
    """The warnings logged while the test runs."""
    lines: list[str] = []
    handle = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    yield lines
    logger.remove(handle)


@pytest.fixture
def other_lookup(tmp_path, monkeypatch):
    """Puts this program in the place of the process that looks names up."""

    def replace(program: str) -> None:
        (tmp_path / "src" / "grid").mkdir(parents=True)
        (tmp_path / "src" / "grid" / "check.py").write_text(program)
        monkeypatch.setattr(check, "ROOT", tmp_path)

    return replace


# ---- What is reported of rows


@pytest.mark.usefixtures("warm_lookup")
def test_good_rows_have_no_errors(warnings):
    rows = [
        {"dataset": "sklearn/iris", "model": "linear", "base_lr": 0.1, "seed_training": 1},
        {"dataset": "sklearn/digits", "model": "tiny/lenet", "optim_alg": "adam", "batch_size": 64},
        {"base_lr": "10 ** np.random.uniform(-3, 0)", "averaging": ["ema_0.9", "poly"]},
        {"lr_schedule": "step_1,2_0.5", "warmup_steps": 10, "loss": "mse", "momentum": None},
        {"loss": "bce"},
        {},
    ]
    assert check_rows(rows) == []
    assert check_rows([]) == []
    assert warnings == []


@pytest.mark.usefixtures("warm_lookup")
def test_the_errors_of_all_rows_come_at_once_those_of_most_rows_first():
    rows = [
        {"batch_size": 0, "drop_last": False},
        {"batch_size": 8, "drop_last": "no"},
        {"batch_size": 0, "drop_last": "no", "bach_size": 3},
        {"batch_size": 8, "drop_last": "no"},
        {"batch_size": 8, "grad_accum_steps": 3},
    ]
    assert check_rows(rows) == [
        "3 runs: drop_last: got 'no', expected boolean",
        "2 runs: batch_size: got 0, expected greater than or equal to 1",
        "run 2: bach_size=3: there is no such key; did you mean 'batch_size'? "
        "All keys are in src/keys.py",
        "run 4: grad_accum_steps: got 3, expected a divisor of batch_size=8",
    ]


@pytest.mark.usefixtures("warm_lookup")
def test_rows_that_the_grid_calls_equal_are_not_reported_again():
    assert check_rows([{"batch_size": 8}, {"batch_size": 8}]) == []
    (line,) = check_rows([{}, {"momentum": KEYS["momentum"].default}])
    assert line == "run 1: the same experiment as run 0"


@pytest.mark.usefixtures("warm_lookup")
def test_what_is_wrong_with_one_key_hides_no_other():
    row = {"batch_size": 0, "grad_accum_steps": 3, "base_lr": "[floot(3)]", "device": "gpu"}
    row |= {"steps_per_epoch": 1, "samples_per_epoch": 1000, "unknown": 1}
    lines = [line.partition(": ")[2] for line in check_rows([row])]
    assert [re.match(r"\w+", line)[0] for line in lines] == [
        "batch_size",
        "samples_per_epoch",
        "device",
        "base_lr",
        "unknown",
    ]


@pytest.mark.usefixtures("warm_lookup")
def test_of_what_hangs_on_keys_that_could_not_be_read_nothing_is_reported():
    row = {"grad_accum_steps": 3, "model_pretrained": True, "optim_alg": "sgdd", "warmup_steps": -1}
    row |= {"label_smoothing": 0.1}
    lines = check_rows([row], unread={"batch_size", "model", "loss"})
    assert [line.partition(":")[0] for line in lines] == ["warmup_steps", "optim_alg"]


@pytest.mark.usefixtures("warm_lookup")
def test_errors_that_differ_in_the_value_are_one_line():
    rows = [{"batch_size": -n} for n in (1, 2, 3, 1)] + [{"batc": "a"}, {"batc": "b"}]
    two, many = check_rows(rows)[::-1], check_rows([{"batch_size": -n} for n in range(1000, 2000)])
    assert two == [
        "2 runs: batc='a', 'b': there is no such key; did you mean 'batch_size'? "
        "All keys are in src/keys.py",
        "4 runs: batch_size: got -1, -2, -3, expected greater than or equal to 1",
    ]
    assert many == [
        "1,000 runs: batch_size: got -1000, -1001, -1002, …, expected greater than or equal to 1"
    ]


@pytest.mark.usefixtures("warm_lookup")
def test_of_many_errors_and_long_values_some_is_shown():
    rows = [{f"k{number}": 0} for number in range(25)] + [{"wandb": "x" * 300}]
    lines = check_rows(rows[-1:] + rows)
    assert (len(lines), lines[-1]) == (21, "… and 6 more")
    assert lines[0] == f"2 runs: wandb: got '{'x' * 78}…, expected boolean"


@pytest.mark.usefixtures("warm_lookup")
def test_names_are_looked_up_beside_the_types():
    rows = [
        {"model": model, "dataset": "sklearn/irsi", "wandb": wandb}
        for model in ("linear", "tiny/lent", "tiny/lenett")
        for wandb in (True, "on")
    ]
    lines = check_rows(rows)
    assert [line.split("; did you mean")[0] for line in lines] == [
        "6 runs: dataset: unknown 'sklearn/irsi'",
        "4 runs: model: unknown 'tiny/lent', 'tiny/lenett'",
        "3 runs: wandb: got 'on', expected boolean",
    ]


# ---- The process that looks names up


def test_torch_stays_outside():
    script = (
        "import sys; from src.grid.check import check_rows\n"
        "errors = check_rows([{'model': 'linaer'}])\n"
        "sys.exit(len(errors) != 1 or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_many_rows_ask_few_questions():
    rows = [
        {"seed_training": seed, "base_lr": lr, "model": "linear", "optim_alg": "adam", "loss": None}
        for seed in range(100)
        for lr in (1, 2)
    ]
    assert distinct_questions(rows) == {
        '["model", {"model": "linear"}]': list(range(200)),
        '["optim_alg", {"optim_alg": "adam"}]': list(range(200)),
    }


@pytest.mark.usefixtures("warm_lookup")
def test_values_that_no_json_holds_are_reported_once(warnings):
    (line,) = check_rows([{"model": date(2024, 1, 2), "loss": "log"}])
    assert line == "run 0: model: got datetime.date(2024, 1, 2), expected string"
    assert warnings == []


NO_TORCH = "raise ModuleNotFoundError(\"No module named 'torch'\")"
SILENT = "import sys, time; sys.stdin.read(); time.sleep(60)"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (NO_TORCH, "ModuleNotFoundError: No module named 'torch'"),
        (SILENT, "no answer within 0.5 seconds"),
        ("raise SystemExit(3)", "ended by 3"),
        ('print(\'[{"unknown": "timm is\\\\nnot here"}]\')', "timm is not here"),
    ],
)
def test_where_nothing_can_be_looked_up_a_warning_says_why(
    other_lookup, warnings, monkeypatch, program, reason
):
    other_lookup(program)
    if program == SILENT:
        monkeypatch.setattr(check, "PATIENCE_SECONDS", 0.5)
    assert check_rows([{"model": "linaer", "batch_size": 0}]) == [
        "run 0: batch_size: got 0, expected greater than or equal to 1"
    ]
    assert warnings == [f"not all names could be looked up: {reason}"]


def test_the_lookup_sees_no_gpu_and_fetches_nothing(other_lookup):
    other_lookup(
        "import json, os; names = 'CUDA_VISIBLE_DEVICES', 'HF_HUB_OFFLINE'\n"
        "print(json.dumps([{'errors': [os.environ[name] for name in names]}]))"
    )
    assert check_rows([{"model": "linear"}]) == ["run 0: ", "run 0: 1"]


# ---- Which names exist


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (
            {"dataset": "sklearn/digit"},
            "dataset: unknown 'sklearn/digit'; did you mean",
        ),
        ({"dataset": "libsvm/a9a", "data_splits_map": {"train": "vali"}}, "data_splits_map: train"),
        ({"dataset": "sklearn/iris", "data_mean": [0.5]}, "data_mean, data_std: give both"),
        ({"model": "timm/resnet1"}, "model: unknown 'timm/resnet1'; did you mean 'timm/resnet1"),
        ({"model": "linear", "model_pretrained": True}, "model_pretrained: there are no"),
        ({"optim_alg": "adma"}, "optim_alg: unknown 'adma'; did you mean 'adam'"),
        ({"optim_alg": "timm/lambb"}, "optim_alg: unknown 'timm/lambb'"),
        ({"optim_args": {"epss": 1}}, "optim_args: unknown 'epss'"),
        ({"optim_alg": "adam", "optim_args": {"eps": -1}}, "optim_alg 'adam': Invalid epsilon"),
        ({"optim_alg": "sgd", "momentum": "0.9,0.99"}, "momentum: got '0.9,0.99', expected"),
        ({"lr_schedule": "cosin"}, "lr_schedule: got 'cosin'"),
        ({"averaging": ["ema", "poli"]}, "averaging: got 'poli'"),
        ({"loss": "lgo"}, "loss: unknown 'lgo'; did you mean 'log'"),
        ({"loss": "tests.own_parts:Focla"}, "loss: tests.own_parts has no function 'Focla'"),
        (
            {"loss": "tests.own_parts:Contrastive", "grad_accum_steps": 2},
            "grad_accum_steps: got 2, expected 1, as loss tests.own_parts:Contrastive is no sum",
        ),
        ({"optim_alg": "tests.own_parts:nothing"}, "optim_alg: got 'tests.own_parts:nothing'"),
        ({"lr_schedule": "tests.own_parts:nothing"}, "lr_schedule: got 'tests.own_parts:nothing'"),
        ({"averaging": ["ema", "tests.own_parts:tial"]}, "averaging: tests.own_parts has no"),
        ({"aug_function": "tests.own_parts:of_three"}, "aug_function: got 'tests.own_parts:of_th"),
        ({"dataset": "tests.own_parts:of_three"}, "dataset: got 'tests.own_parts:of_three'"),
        ({"model": "tests.own_parts:of_three"}, "model: got 'tests.own_parts:of_three'"),
        ({"loss": "mse", "label_smoothing": 0.1}, "label_smoothing: got 0.1, expected 0"),
        ({"loss": "bce", "loss_class_weights": [1, 2]}, "loss_class_weights: got"),
        ({"aug_auto": "rand-x"}, "aug_auto: got 'rand-x'"),
        ({"aug_mixup": 0.2, "loss": "mse"}, "loss: got 'mse', expected 'log'"),
        ({"dataset": "sklearn/iris", "aug_hflip": 0.5}, "aug_hflip: got 0.5, expected 0"),
        ({"model": "linear", "model_freeze": "("}, "model_freeze: got '('"),
        ({"model": "linear", "model_head_init": "zero_shot"}, "model_head_init: got 'zero_shot'"),
        (
            {"data_splits_map": {"train": "train", "o": "sklearn/irsi:test"}},
            "dataset: unknown 'sklearn/irsi'",
        ),
    ],
)
def test_what_a_run_would_refuse_is_refused(settings, error):
    kinds = [kind for kind, keys in QUESTIONS.items() if set(settings) <= set(keys)]
    (line,) = (e for kind in kinds for e in check.answer(kind, settings).get("errors", []))
    assert line.startswith(error)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("optim_alg", {"optim_alg": "timm/lamb", "momentum": "0.9,0.99"}),
        ("loss", {"loss": "log", "loss_class_weights": [1, 2, 3]}),
        ("loss", {"loss": "bce"}),
        ("loss", {"loss": "tests.own_parts:Contrastive", "batch_size": 5}),
        ("dataset", {"loss": "tests.own_parts:Focal", "aug_mixup": 0.1}),
        ("averaging", {"averaging": ["tests.own_parts:Twofold", "tests.own_parts:tail"]}),
        ("model", {"model": "timm/resnet18", "model_weights": "nowhere.pt"}),
        ("momentum has the wrong type", {"momentum": [1]}),
    ],
)
def test_what_may_run_is_not_refused(kind, settings):
    assert check.answer(kind, settings) == {}


@pytest.mark.parametrize("error", [ImportError("no apex"), AssertionError("CUDA required")])
def test_what_this_machine_lacks_is_no_error(monkeypatch, error):
    """The node that will run the row may have it."""

    def missing(*args, **kwargs):
        raise error

    monkeypatch.setattr("timm.optim.get_optimizer_class", missing)
    answer = check.answer("optim_alg", {"optim_alg": "timm/lamb"})
    assert list(answer) == ["unknown"]
    assert str(error) in answer["unknown"]


def test_what_fails_in_another_way_is_no_error(monkeypatch):
    monkeypatch.setitem(check.name_checks(), "loss", lambda config: 1 / 0)
    assert check.answer("loss", {}) == {"unknown": "loss: ZeroDivisionError: division by zero"}


def test_what_a_library_prints_is_no_answer(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO('[["loss", {}]]'))
    monkeypatch.setitem(check.name_checks(), "loss", lambda config: print("welcome"))
    check.main()
    assert capsys.readouterr().out == "[{}]\n"


TYPES_SUFFICE = {"base_lr", "weight_decay", "weight_decay_biases", "layer_decay"}


@pytest.mark.parametrize(
    "settings",
    [
        {"optim_alg": "timm/lamb"},
        {"optim_alg": "adam", "model": "timm/resnet18", "dataset": "timm/torch/mnist"},
        {"dataset": "libsvm/a9a", "model": "tiny/lenet", "averaging": "ema", "loss": "mse"},
        {"dataset": "sklearn/iris", "loss_class_weights": [1, 2]},
    ],
)
def test_a_question_holds_all_that_its_check_reads(settings):
    class Recorder:
        def __getattr__(self, key):
            read.add(key)
            return getattr(config, key)

    config = make_config(settings)
    for kind, keys in QUESTIONS.items():
        read: set[str] = set()
        check.name_checks()[kind](Recorder())
        assert kind in read <= set(keys) | TYPES_SUFFICE
        assert set(keys) <= KEYS.keys()
    assert QUESTIONS.keys() == check.name_checks().keys()
