"""Your own logic between the epochs: a race of learning rates, the worst leaves every round.

PYTHONPATH=. python examples/best_of_three.py
"""

import pandas as pd

from src.config import make_config
from train import experiment_generator


def race(rates: list[float], rounds: int) -> tuple[float, dict[float, list[float]]]:
    """Train one run per learning rate side by side; the winner, and all test accuracies."""
    runs = {rate: experiment_generator(_config(rate)) for rate in rates}
    accuracies: dict[float, list[float]] = {rate: [] for rate in rates}
    for _ in range(rounds):
        for rate, run in runs.items():
            stats: pd.DataFrame
            stats, _model = next(run)  # one epoch further
            accuracies[rate].append(float(stats["test/last/accuracy"].iloc[-1]))
        if len(runs) > 1:
            worst = min(runs, key=lambda rate: accuracies[rate][-1])
            runs.pop(worst).close()  # closes its files
    for run in runs.values():
        run.close()
    return max(runs, key=lambda rate: accuracies[rate][-1]), accuracies


def _config(rate: float):
    keys = {"dataset": "sklearn/digits", "model": "linear", "optim_alg": "adam"}
    return make_config(keys | {"base_lr": rate, "seed_model": 0, "seed_training": 0})


if __name__ == "__main__":
    winner, accuracies = race([0.0001, 0.001, 0.01], rounds=4)
    for rate, curve in accuracies.items():
        print(f"base_lr {rate}: {[round(a, 3) for a in curve]}")
    print(f"the winner is {winner}")
