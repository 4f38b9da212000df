"""The numbers audit: what the project computes beside independent references, as a table.

    python benchmarks/audit.py              # half a minute; exit code 1 where a row is off

References of training and losses are numpy in float64, written from the formulas of the papers;
those of schedules, averages and analysis are other libraries (torch's schedulers and averages,
timm, scipy), the standard library, or closed forms. The data and their order are taken from the
project; everything that is computed from them is computed twice.
"""

import csv
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
import timm.utils
import torch
from scipy import stats
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torch.optim import SGD, swa_utils
from torch.optim import lr_scheduler as of_torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.references import (
    Step,
    Summed,
    adam,
    averaged,
    cross_entropy,
    labels,
    plain_run,
    sgd,
    squared_error,
    t_interval,
)
from src.analysis import choose, paired, read_experiments, table
from src.analysis.curves import at, at_best, best, last
from src.analysis.plots.curves import first_reached
from src.analysis.settings import mean_interval
from src.config import make_config
from src.data.splits import NO_TOKEN
from src.losses import build_loss
from src.optim.averaging import build_averaged_models
from src.optim.schedules import build_schedule
from src.ranking import Run, rank
from src.runtime.evaluation import recompute_batch_norms
from train import experiment_generator

SINGLE, DOUBLE = 2e-5, 1e-12  # what float32 leaves of 30 steps, and float64 of a few operations
ROUNDED = 1e-6  # float32, a few operations


@dataclass(frozen=True)
class Row:
    """A line of the table. ours, reference: one number of many, to look at; the difference is the
    largest of all that were compared, and of count numbers."""

    quantity: str
    source: str  # what the reference is
    ours: float
    reference: float
    count: int
    difference: float
    allowed: float

    @property
    def is_off(self) -> bool:
        return not self.difference <= self.allowed  # nor is NaN right


def compare(
    quantity: str, source: str, ours: Any, reference: Any, allowed: float, *, shown: int = -1
) -> Row:
    """shown: which of the numbers stands in the table. Where one has NaN, so must the other."""
    a, b = (np.asarray(x, dtype=float).ravel() for x in (ours, reference))
    difference = math.nan
    if a.shape == b.shape and np.array_equal(np.isfinite(a), there := np.isfinite(b)):
        is_same = np.array_equal(a[~there], b[~there], equal_nan=True)
        difference = float(np.abs(a[there] - b[there]).max(initial=0)) if is_same else math.nan
    return Row(quantity, source, float(a[shown]), float(b[shown]), len(a), difference, allowed)


# ---- Losses ------------------------------------------------------------------------------

CLASS_WEIGHTS = [0.1, 1, 2, 3, 4, 5, 0.5, 0.5, 0.5, 7]


def losses() -> Iterator[Row]:
    random = np.random.default_rng(1)
    x, y = random.normal(scale=3, size=(50, 10)), random.integers(0, 10, 50)
    reals, several = random.normal(size=(50, 10)), random.integers(0, 2, (50, 10)).astype(float)
    smooth, weighted = (
        {"label_smoothing": 0.1},
        {"class_weights": torch.tensor(CLASS_WEIGHTS, dtype=torch.float64)},
    )
    cases: list[tuple[str, str, dict[str, Any], np.ndarray, Summed]] = [
        ("log", "-log p", {}, y, cross_entropy(x, y)),
        ("log, smoothing 0.1", "q = 0.9 one-hot + 0.01", smooth, y, cross_entropy(x, y, 0.1)),
        (
            "log, class weights",
            "Σ w·loss / Σ w",
            weighted,
            y,
            cross_entropy(x, y, 0, CLASS_WEIGHTS),
        ),
        (
            *("log, both", "both", smooth | weighted, y),
            cross_entropy(x, y, 0.1, CLASS_WEIGHTS),
        ),
        ("mse of classes", "mean (x - one-hot)²", {}, y, squared_error(x, np.eye(10)[y])),
        ("mse of real targets", "mean (x - y)², no ½", {}, reals, squared_error(x, reals)),
        ("bce", "mean over labels", {}, several, labels(x, several)),
    ]
    for name, formula, more, targets, (total, gradient, weight) in cases:
        outputs = torch.tensor(x, requires_grad=True)
        about = {"n_classes": None if targets is reals else 10, "is_multilabel": name == "bce"}
        loss = build_loss(name.split()[0].strip(","), **about, **more)
        wanted = torch.tensor(targets)
        value = loss(outputs, wanted) / loss.normalizer(wanted)
        value.backward()
        ours = [*outputs.grad.flatten().tolist(), value.item()]
        reference = [*(gradient / weight).ravel(), total / weight]
        yield compare(f"loss {name}, gradient", formula, ours, reference, ROUNDED)
    # tokens: 5 texts of 10, of which one is shorter
    tokens, mask = y.reshape(5, 10).copy(), np.ones((5, 10), bool)
    mask[2, 6:] = False
    total, _, count = cross_entropy(x[mask.ravel()], tokens[mask])
    loss, wanted = build_loss("next_token", n_classes=10, is_text_alone=True), torch.tensor(tokens)
    wanted[~torch.tensor(mask)] = NO_TOKEN
    value = loss(torch.tensor(x).view(5, 10, 10), wanted) / loss.normalizer(wanted)
    yield compare("loss next_token", "mean over tokens", value.item(), total / count, ROUNDED)


# ---- Training ----------------------------------------------------------------------------
# A linear model on scikit-learn's digits: 1438 examples, 2 passes of 15 steps, the last one short.

DIGITS: dict[str, Any] = {
    **{"dataset": "sklearn/digits", "model": "linear", "batch_size": 100, "train_length": 2},
    **{"base_lr": 0.3, "seed_model": 1, "seed_training": 2, "device": "cpu", "multi_gpu": False},
    **{"num_workers": 0, "system_interval": 0},
}


# what is audited, the formula, the keys, the optimizer of the reference
DECAY = {"weight_decay": 0.1, "weight_decay_biases": 0.02}
SLOW = {"base_lr": 0.01}
NESTEROV = "v ← μv + g; w ← w - η(g + μv)"
RUNS: list[tuple[str, str, dict[str, Any], Callable[[], Step]]] = [
    ("sgd without momentum", "w ← w - ηg", {"momentum": 0}, sgd),
    ("sgd, momentum 0.9 (Nesterov)", NESTEROV, {}, lambda: sgd(0.9)),
    ("sgd, weight_decay (coupled)", "g + λw; biases their own λ", DECAY, lambda: sgd(0.9)),
    ("adam", "Kingma & Ba, alg. 1", SLOW | {"optim_alg": "adam"}, adam),
    ("adam, weight_decay (coupled)", "g + λw", SLOW | DECAY | {"optim_alg": "adam"}, adam),
    (
        *("adamw, weight_decay (decoupled)", "w ← (1 - ηλ)w"),
        SLOW | DECAY | {"optim_alg": "adamw"},
        lambda: adam(is_decoupled=True),
    ),
    (
        *("adam, momentum '0.8,0.95', ada_eps 0.01", "β₁ = 0.8, β₂ = 0.95, √v̂ + ε"),
        SLOW | {"optim_alg": "adam", "momentum": "0.8,0.95", "ada_eps": 0.01},
        lambda: adam(0.8, 0.95, eps=0.01),
    ),
    (
        *("amsgrad", "max of v", SLOW | {"optim_alg": "amsgrad", "momentum": "0.9,0.9"}),
        lambda: adam(0.9, 0.9, is_amsgrad=True),
    ),
    (
        *("amsgradw, weight_decay", "max of v; w ← (1 - ηλ)w"),
        SLOW | DECAY | {"optim_alg": "amsgradw", "momentum": "0.9,0.9"},
        lambda: adam(0.9, 0.9, is_decoupled=True, is_amsgrad=True),
    ),
    ("clip_norm 0.3", "g ← g·min(1, c/‖g‖), all layers", {"clip_norm": 0.3}, lambda: sgd(0.9)),
    ("clip_value 0.01", "each entry to ±0.01", {"clip_value": 0.01}, lambda: sgd(0.9)),
    ("grad_accum_steps 4", "one batch of 100", {"grad_accum_steps": 4}, lambda: sgd(0.9)),
    (
        *("grad_accum_steps 4, class weights, smoothing", "one batch of 100"),
        {"grad_accum_steps": 4, "loss_class_weights": CLASS_WEIGHTS, "label_smoothing": 0.1},
        lambda: sgd(0.9),
    ),
    ("drop_last", "14 steps a pass", {"drop_last": True}, lambda: sgd(0.9)),
    ("loss mse", "mean (x - one-hot)²", {"loss": "mse"}, lambda: sgd(0.9)),
    (
        *("cosine with warm-up of 10", "min(1, (t+1)/10)·½(1 + cos πt/30)"),
        {"lr_schedule": "cosine", "warmup_steps": 10},
        lambda: sgd(0.9),
    ),
    (
        *("averaging ema_0.9, ema_debiased_0.9, poly_0, poly_3", "Σ shares of all weights"),
        {"averaging": ["ema_0.9", "ema_debiased_0.9", "poly_0", "poly_3"]},
        lambda: sgd(0.9),
    ),
]


def training() -> Iterator[Row]:
    for name, formula, keys, optimizer in RUNS:
        config = make_config(DIGITS | keys)
        *_, (frame, model) = experiment_generator(config)
        ours = [*frame["train/loss"], *frame["train/learning_rate"]]
        for average in ["last", "av", "av2", "av3", "av4"][: 1 + len(config.averaging or [])]:
            ours += [frame[f"test/{average}/{x}"].iloc[-1] for x in ("loss", "accuracy")]
        ours += np.concatenate([p.detach().numpy().ravel() for p in model.parameters()]).tolist()
        yield compare(f"run: {name}", formula, ours, plain_run(config, optimizer), SINGLE, shown=1)


# ---- Schedules ---------------------------------------------------------------------------

Build = Callable[[torch.optim.Optimizer], Any]


def factors(build: Build, num_steps: int) -> list[float]:
    """Of the learning rate 1, by one of torch's schedulers."""
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a scheduler warns of others within it
        scheduler = build(optimizer)
        for _ in range(num_steps):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return found


def warm_up(steps: int) -> Build:
    return lambda o: of_torch.LinearLR(o, start_factor=1 / steps, total_iters=steps - 1)


def cosine(steps: int) -> Build:
    return lambda o: of_torch.CosineAnnealingLR(o, steps)


def drops(factor: float, *steps: int) -> Build:
    return lambda o: of_torch.MultiStepLR(o, list(steps), gamma=factor)


def power(exponent: float) -> Build:
    return lambda o: of_torch.LambdaLR(o, lambda t: (t + 1) ** -exponent)


def schedules() -> Iterator[Row]:
    after = (warm_up(10), cosine(90))
    cases: list[tuple[str, str, Build]] = [
        ("constant", "LambdaLR 1", lambda o: of_torch.LambdaLR(o, lambda t: 1.0)),
        ("cosine", "CosineAnnealingLR", cosine(100)),
        ("poly", "LambdaLR (1+t)^-½", power(0.5)),
        ("poly_2", "LambdaLR (1+t)^-2", power(2)),
        ("step", "MultiStepLR 20, 40, 60, 80", drops(0.1, 20, 40, 60, 80)),
        ("step_2_0.5", "MultiStepLR 34, 67", drops(0.5, 34, 67)),
        ("step_3,6,1_0.2", "MultiStepLR 30, 90", drops(0.2, 30, 90)),
    ]
    for name, source, build in cases:
        plain = build_schedule(name, num_steps=100)
        warm = build_schedule(name, num_steps=100, warmup_steps=10)
        ours = [plain(t) for t in range(100)]
        yield compare(f"schedule {name}", source, ours, factors(build, 100), DOUBLE, shown=50)
        ours = [warm(t) for t in range(100)]
        # closed forms don't chain: the warm-up by its own scheduler, multiplied here
        reference = np.multiply(factors(warm_up(10), 100), factors(build, 100))
        name = f"schedule {name}, warm-up 10"
        yield compare(name, f"LinearLR × {source}", ours, reference, DOUBLE, shown=5)
    schedule = build_schedule("cosine_after_warmup", num_steps=100, warmup_steps=10)
    ours = [schedule(t) for t in range(100)]
    reference = factors(lambda o: of_torch.SequentialLR(o, [b(o) for b in after], [10]), 100)
    name = "schedule cosine_after_warmup, 10"
    yield compare(name, "SequentialLR(LinearLR, Cosine…)", ours, reference, DOUBLE, shown=55)
    of_timm = CosineLRScheduler(
        SGD([nn.Parameter(torch.zeros(1))], lr=1.0),
        t_initial=90,
        warmup_t=10,
        warmup_prefix=True,
        t_in_epochs=False,
    )
    reference = [of_timm._get_lr(t)[0] for t in range(10, 100)]
    yield compare(f"{name} steps", "timm CosineLRScheduler", ours[10:], reference, DOUBLE, shown=45)


# ---- Averages ----------------------------------------------------------------------------


def averages() -> Iterator[Row]:
    """Of a network with batch norm, whose buffers are averaged as well, over 40 random steps."""
    for name, source in (
        ("ema_0.9", "timm ModelEmaV3"),
        ("ema_0.999", "timm ModelEmaV3"),
        ("poly_0", "torch AveragedModel"),
        ("poly_3", "closed form"),
        ("ema_debiased_0.9", "closed form"),
    ):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)).double()
        ours = build_averaged_models(name, model)["av"]
        decay = float(name.rpartition("_")[2])
        of_timm = timm.utils.ModelEmaV3(model, decay=min(decay, 1.0))
        of_swa = swa_utils.AveragedModel(model, use_buffers=True)
        history = [tensors(model)]
        for _ in range(40):
            model(torch.randn(8, 5).double())
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += torch.randn_like(parameter)
            for average in (ours, of_timm):
                average.update(*[model] * (average is of_timm))
            of_swa.update_parameters(model)
            history.append(tensors(model))
        if source == "closed form":
            reference = np.concatenate(averaged(name, [[weights] for weights in history]))
        else:
            reference = tensors(of_timm.module if source.startswith("timm") else of_swa.module)
        quantity = f"average {name}: weights, running statistics"
        yield compare(quantity, source, tensors(ours.model), reference, 1e-6)
    yield recomputed()


def recomputed() -> Row:
    """averaging_bn: recompute, for the first layer of a network: batches of two sizes."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()
    parts = [torch.randn(size, 5) * 3 + 1 for size in (8, 8, 5)]
    recompute_batch_norms(model, ((part, torch.zeros(len(part))) for part in parts), model)
    arrays = [part.double().numpy() for part in parts]
    reference = [
        np.mean([x.mean(0) for x in arrays], 0),
        np.mean([x.var(0, ddof=1) for x in arrays], 0),
    ]
    ours = torch.stack([model[0].running_mean, model[0].running_var]).numpy()
    name = "averaging_bn: recompute, statistics"
    return compare(name, "means over batches of mean, variance", ours, reference, 1e-5)


def tensors(model: nn.Module) -> np.ndarray:
    found = [t for t in model.state_dict().values() if t.is_floating_point()]
    return torch.cat([t.detach().double().flatten() for t in found]).numpy()


# ---- Analysis ----------------------------------------------------------------------------

NUM_SEEDS, NUM_EPOCHS = 5, 8
RATES = [0.1, 0.2, 0.4]
VAL, TEST, LOSS = "val/last/accuracy", "test/last/accuracy", "test/last/loss"
TARGET = 0.6
INF = math.inf


def curves() -> Iterator[Row]:
    df, runs = grid()
    pairs: list[tuple[str, str, Any, list[float]]] = [
        ("last test accuracy", "csv", last(df[TEST]), [run[TEST][-1] for run in runs]),
        ("mean of the last 4", "fmean", last(df[TEST], 4), [fmean(run[TEST][-4:]) for run in runs]),
        ("best test accuracy", "max", best(df[TEST]), [max(run[TEST]) for run in runs]),
        ("best test loss", "min", best(df[LOSS]), [min(run[LOSS]) for run in runs]),
        (
            "value at epoch 4.5",
            "that of epoch 4",
            at(df[TEST], 4.5),
            [run[TEST][3] for run in runs],
        ),
        (
            *("test in the epoch best by val", "csv", at_best(df[TEST], df[VAL])),
            [run[TEST][run[VAL].index(max(run[VAL]))] for run in runs],
        ),
        (
            *(f"first epoch at {TARGET}; inf: never", "csv", first_reached(df[TEST], TARGET)),
            [next((e for e, x in enumerate(run[TEST], 1) if x >= TARGET), INF) for run in runs],
        ),
    ]
    for quantity, source, ours, reference in pairs:
        yield compare(quantity, source, ours, reference, DOUBLE)


def settings() -> Iterator[Row]:
    df, runs = grid()
    val, test = last_values(runs, VAL), last_values(runs, TEST)
    order = sorted(range(len(RATES)), key=lambda i: -fmean(val[i]))
    rates, means = [RATES[i] for i in order], [fmean(test[i]) for i in order]
    found = table(df, [VAL, TEST])
    yield compare("table: settings in order", "sorted fmean", found["base_lr"], rates, 0, shown=0)
    ours = found["num_seeds"]
    yield compare("table: seeds of each", "of the files", ours, [NUM_SEEDS] * 3, 0)
    yield compare("table: mean over seeds", "fmean", found[TEST], means, DOUBLE, shown=0)
    ours = choose(df, VAL, TEST)[["base_lr", VAL, TEST]]
    reference = [rates[0], fmean(val[order[0]]), means[0]]
    yield compare("choose: setting, val, test", "the first of these", ours, reference, DOUBLE)


def ranking() -> Iterator[Row]:
    """Of 40 settings of six seeds, of which some diverged and some have no value."""
    random = np.random.default_rng(4)
    values, fates = random.normal(0.5, 0.1, (40, 6)), random.random((40, 6))
    fates[7] = 0.0  # all seeds diverged
    runs = [
        [
            Run(seed, math.nan if fate > 0.95 else value, is_diverged=fate < 0.1)
            for seed, (value, fate) in enumerate(zip(*setting, strict=True))
        ]
        for setting in zip(values.tolist(), fates.tolist(), strict=True)
    ]
    kept = [
        value[(fate >= 0.1) & (fate <= 0.95)] for value, fate in zip(values, fates, strict=True)
    ]
    order = sorted(range(40), key=lambda i: (-len(kept[i]), -fmean(kept[i]) if len(kept[i]) else 0))
    found = rank(runs, 1)
    source = "sorted by (missing, -fmean)"
    yield compare("ranking: order", source, [one.index for one in found], order, 0, shown=0)
    means = [fmean(kept[i]) if len(kept[i]) else math.nan for i in order]
    ours = [one.mean for one in found]
    yield compare("ranking: means", "fmean", ours, means, DOUBLE, shown=0)
    spreads = [stdev(kept[i]) if len(kept[i]) > 1 else math.nan for i in order]
    yield compare("ranking: spread", "stdev", [one.std for one in found], spreads, DOUBLE, shown=0)
    diverged = [int((fates[i] < 0.1).sum()) for i in order]
    ours = [one.num_diverged for one in found]
    yield compare("ranking: diverged seeds", "counted", ours, diverged, 0)


def intervals() -> Iterator[Row]:
    df, runs = grid()
    test = last_values(runs, TEST)
    found = table(df, [TEST])
    ours = found.sort_values("base_lr")[[f"{TEST} low", f"{TEST} high"]]
    reference = [t_interval(values) for values in test]
    source = "mean ± t·s/√n, scipy.stats.t"
    yield compare("table: 95 % intervals", source, ours, reference, DOUBLE, shown=0)
    ours = choose(df, VAL, TEST)[["low", "high"]]
    chosen = reference[int(np.argmax([fmean(values) for values in last_values(runs, VAL)]))]
    yield compare("choose: 95 % interval", source, ours, chosen, DOUBLE, shown=0)
    for num in (2, 3, 5, 10):
        values = np.random.default_rng(num).normal(0.9, 0.02, num)
        both = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        ours = mean_interval(values)[1:]
        yield compare(f"95 % interval, n = {num}", "scipy ttest_1samp", ours, both, DOUBLE)
    pair = paired(df[df["base_lr"] == RATES[0]], df[df["base_lr"] == RATES[1]], TEST)
    both = stats.ttest_rel(test[0], test[1]).confidence_interval(0.95)
    reference = [fmean(test[0]) - fmean(test[1]), *both]
    ours = [pair.difference, pair.low, pair.high]
    yield compare("paired: difference, interval", "scipy ttest_rel", ours, reference, DOUBLE)


def last_values(runs: list[dict[str, Any]], column: str) -> list[list[float]]:
    """(settings, seeds)"""
    return [[run[column][-1] for run in runs if run["base_lr"] == rate] for rate in RATES]


def grid() -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The runs of a batch as big_df, and as the standard library reads their files."""
    with tempfile.TemporaryDirectory() as name:
        batch = Path(name) / "batch"
        make_runs(batch)
        df = read_experiments([batch], results=Path(name))
        runs = [read_plainly(folder) for folder in sorted(batch.iterdir())]
    return df, runs


def make_runs(batch: Path) -> None:
    """Three settings of NUM_SEEDS runs each, with curves of random numbers."""
    random = np.random.default_rng(0)
    for setting, rate in enumerate(RATES):
        for seed in range(NUM_SEEDS):
            folder = batch / f"{setting * NUM_SEEDS + seed:03d}_base_lr={rate}"
            folder.mkdir(parents=True)
            keys = f"base_lr: {rate}\nseed_model: {seed}\nseed_training: {seed}\n"
            (folder / "config.yaml").write_text(keys)
            (folder / "spec.yaml").write_text(keys)
            (folder / "done").write_text("finished\n")
            (folder / "provenance.json").write_text("{}")  # as no older copy has it
            columns = ["epoch", VAL, TEST, LOSS]
            with open(folder / "stats.csv", "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["", *columns])
                for epoch in range(NUM_EPOCHS):
                    risen = 0.2 + 0.5 * epoch / NUM_EPOCHS + 0.03 * setting
                    accuracies = random.normal(risen, 0.1, 2)
                    writer.writerow([epoch, epoch + 1, *accuracies, random.exponential()])


def read_plainly(folder: Path) -> dict[str, Any]:
    """Column -> its values; and base_lr."""
    with open(folder / "stats.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    values = {column: [float(row[column]) for row in rows] for column in rows[0] if column}
    return values | {"base_lr": float(folder.name.partition("=")[2])}


# ---- The table ---------------------------------------------------------------------------

SECTIONS = {
    "Losses": losses,
    "Training": training,
    "Schedules": schedules,
    "Averages": averages,
    "Analysis: curves": curves,
    "Analysis: settings": settings,
    "Analysis: ranking": ranking,
    "Analysis: intervals": intervals,
}


def main() -> int:
    """The table, in Markdown; how many rows are off is its last line."""
    torch.set_num_threads(1)
    num_off = 0
    for title, section in SECTIONS.items():
        print(f"\n### {title}\n")
        print("| quantity | reference | ours | reference's | numbers | largest difference |")
        print("|---|---|--:|--:|--:|--:|")
        for row in section():
            cells = f"{row.ours:.8g} | {row.reference:.8g} | {row.count} | {row.difference:.1e}"
            mark = f" **off, allowed {row.allowed:.0e}**" if row.is_off else ""
            print(f"| {row.quantity} | {row.source} | {cells}{mark} |", flush=True)
            num_off += row.is_off
    print(f"\n{num_off} rows are off" if num_off else "\nno row is off")
    return 1 if num_off else 0


if __name__ == "__main__":
    sys.exit(main())
