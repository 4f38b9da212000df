"""Plain references for audit.py, in numpy's float64: the formulas of the papers, and a training run
made of them. The data, their order and the initial weights are the project's; nothing else is.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy import special, stats

from src.config import Config
from src.data.order import permutation
from src.data.registry import build_data
from src.models.registry import build_model

NUM_STEPS = 30  # of the run: two passes through digits
Summed = tuple[float, np.ndarray, float]  # losses, their gradient (n, C), what both are divided by
Parameters = list[np.ndarray]  # weight (64, 10) and bias (10,)
Step = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]


# ---- Losses ------------------------------------------------------------------------------


def cross_entropy(
    outputs: np.ndarray, classes: np.ndarray, smoothing: float = 0.0, weights: Any = None
) -> Summed:
    """-Σ w_c q_c log p_c with q = (1 - ε) one-hot + ε/C (Szegedy et al. 2016, section 7), divided
    by Σ w of the examples' classes."""
    w = np.ones(outputs.shape[1]) if weights is None else np.array(weights)
    q = (1 - smoothing) * np.eye(len(w))[classes] + smoothing / len(w)
    log_p = outputs - special.logsumexp(outputs, axis=1, keepdims=True)
    gradient = np.exp(log_p) * (w * q).sum(1, keepdims=True) - w * q
    return float(-(w * q * log_p).sum()), gradient, float(w[classes].sum())


def squared_error(outputs: np.ndarray, targets: np.ndarray) -> Summed:
    """The mean over the outputs of (output - target)², without ½; both (n, k)."""
    n, k = outputs.shape
    return float(((outputs - targets) ** 2).sum() / k), 2 * (outputs - targets) / k, n


def labels(outputs: np.ndarray, targets: np.ndarray) -> Summed:
    """The mean over the labels of -y log σ(x) - (1 - y) log(1 - σ(x))."""
    n, k = outputs.shape
    losses = -targets * special.log_expit(outputs) - (1 - targets) * special.log_expit(-outputs)
    return float(losses.sum() / k), (special.expit(outputs) - targets) / k, n


# ---- Optimizers --------------------------------------------------------------------------


def sgd(momentum: float = 0.0) -> Step:
    """Nesterov as torch has it (Sutskever et al. 2013): v ← μv + g + λw; w ← w - η(g + λw + μv)."""
    v: Any = 0.0

    def step(w: np.ndarray, g: np.ndarray, rate: float, decay: float) -> np.ndarray:
        nonlocal v
        g = g + decay * w
        v = momentum * v + g
        return w - rate * (g + momentum * v)

    return step


def adam(
    beta1: float = 0.9,
    beta2: float = 0.999,
    *,
    eps: float = 1e-8,
    is_decoupled: bool = False,
    is_amsgrad: bool = False,
) -> Step:
    """Kingma and Ba (2015), algorithm 1; AMSGrad keeps the largest second moment (Reddi et al.
    2018); decay: g + λw, decoupled w ← w - ηλw (Loshchilov and Hutter 2019, algorithm 2)."""
    t, m, s, largest = 0, np.zeros(1), np.zeros(1), np.zeros(1)

    def step(w: np.ndarray, g: np.ndarray, rate: float, decay: float) -> np.ndarray:
        nonlocal t, m, s, largest
        w, g = (w - rate * decay * w, g) if is_decoupled else (w, g + decay * w)
        t += 1
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * g**2
        largest = np.maximum(largest, s)
        second = (largest if is_amsgrad else s) / (1 - beta2**t)
        return w - rate * m / (1 - beta1**t) / (np.sqrt(second) + eps)

    return step


def clipped(config: Config, gradients: Parameters) -> Parameters:
    """Pascanu et al. (2013), algorithm 1, of all parameters together; then each entry."""
    if config.clip_norm:
        norm = math.sqrt(sum((g**2).sum() for g in gradients))
        gradients = [g * min(1.0, config.clip_norm / norm) for g in gradients]
    most = config.clip_value or math.inf
    return [g.clip(-most, most) for g in gradients]


def factor(config: Config, t: int) -> float:
    warm = min(1.0, (t + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    is_cosine = config.lr_schedule == "cosine"
    return warm * (0.5 * (1 + math.cos(math.pi * t / NUM_STEPS)) if is_cosine else 1.0)


# ---- A run -------------------------------------------------------------------------------


def plain_run(config: Config, optimizer: Callable[[], Step]) -> list[float]:
    """Losses and learning rates of the epochs, test loss and accuracy of each model, weights."""
    data = build_data(config, None)
    train, test = (
        (split.inputs.flatten(1).double().numpy(), split.targets.numpy())
        for split in (data.splits["train"], data.splits["test"])
    )
    initial = build_model(config, data.input_shape, 10)
    parameters = [p.detach().double().numpy() for p in initial.parameters()]
    steps = [optimizer() for _ in parameters]
    decays = [config.weight_decay, config.weight_decay_biases]
    history, of_epochs, rates, t, rate = [parameters], [], [], 0, 0.0
    for number in range(2):
        order = permutation(config.seed_training or 0, number, len(train[0])).numpy()
        batches = [order[i : i + 100] for i in range(0, len(order), 100)]
        sums = np.zeros(2)
        for rows in batches[: 14 if config.drop_last else None]:
            x, y = train[0][rows], train[1][rows]
            loss, gradient, weight = loss_of(config, x, y, parameters)
            gradients = clipped(config, [x.T @ gradient / weight, gradient.sum(0) / weight])
            rate = float(config.base_lr) * factor(config, t)
            parameters = [
                step(w, g, rate, decay)
                for step, w, g, decay in zip(steps, parameters, gradients, decays, strict=True)
            ]
            history.append(parameters)
            sums += loss, weight
            t += 1
        of_epochs.append(sums[0] / sums[1])
        rates.append(rate)
    found = [*of_epochs, *rates]
    averages = [averaged(name, history) for name in config.averaging or []]
    for one in [parameters, *averages]:
        loss, _, weight = loss_of(config, *test, one)
        right = (test[0] @ one[0] + one[1]).argmax(1) == test[1]
        found += [loss / weight, float(right.mean())]
    return found + np.concatenate([p.ravel() for p in parameters]).tolist()


def loss_of(config: Config, x: np.ndarray, y: np.ndarray, parameters: Parameters) -> Summed:
    outputs = x @ parameters[0] + parameters[1]
    if config.loss == "mse":
        return squared_error(outputs, np.eye(10)[y])
    return cross_entropy(outputs, y, config.label_smoothing, config.loss_class_weights)


def averaged(name: str, history: Sequence[Parameters]) -> Parameters:
    """A closed form: the weighted mean of all weights that there were."""
    weights = shares(name, len(history) - 1)
    return [np.tensordot(weights, np.stack(part), 1) for part in zip(*history, strict=True)]


def shares(name: str, t: int) -> np.ndarray:
    """How much w₀, …, w_t count in the average after t updates: (t + 1,), of sum 1."""
    kind, _, number = name.rpartition("_")
    if kind == "ema":  # unrolled: G^t w₀ + (1 - G) Σ G^(t-i) wᵢ
        g = float(number)
        return np.array([g**t, *((1 - g) * g ** (t - i) for i in range(1, t + 1))])
    if kind == "ema_debiased":  # the same without w₀, divided by the sum
        counts = [float(number) ** (t - i) for i in range(1, t + 1)]
        return np.array([0, *counts]) / sum(counts)
    # c = (K+1)/(K+t), unrolled for whole K: the share of wᵢ is in proportion to i(i+1)…(i+K-1)
    parts = [math.prod(range(i, i + int(number))) for i in range(1, t + 1)]
    return np.array([0, *parts]) / sum(parts)


# ---- Intervals ---------------------------------------------------------------------------


def t_interval(values: Sequence[float]) -> list[float]:
    """mean ± t(0.975, n - 1) s/√n (Student 1908)."""
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return [fmean(values) - half, fmean(values) + half]
