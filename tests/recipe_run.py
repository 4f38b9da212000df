"""In a copy of the code with a recipe: the runs that tests/test_recipes.py asks for.

Arguments: the keys of a default run, and those of the recipe's example, as JSON. The last line
that is printed holds what came of it.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from src.config import make_config
from tests.whole_runs import certificate, grid_here, without_times
from train import run_experiment


def main() -> None:
    torch.set_num_threads(1)
    default, recipe = map(json.loads, sys.argv[1:])
    folder = Path(tempfile.mkdtemp())
    plain = make_config(default | {"output_dir": str(folder / "default"), "save_plot": False})
    stats = without_times(run_experiment(plain)).to_csv()
    keys = recipe | {"output_dir": str(folder / "recipe"), "num_workers": 0}
    last = run_experiment(make_config(keys)).iloc[-1]
    rows = {key: [x] if isinstance(x, list) else x for key, x in recipe.items()}
    rows["seed_training"] = [0, 1]
    found = {
        "default": stats,
        "last": {column: x for column, x in last.items() if isinstance(x, float)},
        "certificate": certificate(recipe, folder, "--kills", "3", "--seed", "1"),
        "grid": [len(x) for x in grid_here(rows, folder)],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
