"""What a start costs: processor time of whole commands, in turns, medians.

    python benchmarks/start.py        about ten minutes; part of make bench

The first table compares with `import torch`, and with a bare script of one step, which imports what
torch.optim and backward() import by themselves. The second runs a grid of many short runs on this
machine: forks of a warm process beside a process a run (--fresh).
"""

import datetime
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bench import machine  # noqa: E402 - after the path

TURNS = 7
TURNS_OF_GRIDS = 3
BARE = """\
import torch
from torch import nn

model = nn.Linear(64, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss = nn.functional.cross_entropy(model(torch.rand(32, 64)), torch.zeros(32, dtype=torch.long))
loss.backward()
optimizer.step()
"""
RUN = ["train.py", "test_cfg_digits_linear.yaml", "train_length_unit=step", "train_length=1"]
GRID = """\
job_details: {name: grid, output_dir: FOLDER}
parameters:
  dataset: sklearn/digits
  model: linear
  base_lr: '[float(x) for x in np.linspace(0.01, 0.1, 27)]'
  optim_alg: [sgd, adam]
  seed_model: [1, 2]
  seed_training: 1
  train_length: 1
"""


def main() -> None:
    print(f"{datetime.date.today()}, {machine()}\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        commands(folder)
        grids(folder)


def commands(folder: Path) -> None:
    (folder / "bare.py").write_text(BARE)
    (folder / "grid.yaml").write_text(GRID.replace("FOLDER", str(folder / "batches")))
    new = f"output_dir={folder}/"
    rows: dict[str, list[str]] = {
        "import torch": ["-c", "import torch"],
        "a bare script of one step": [str(folder / "bare.py")],
        "train.py, one step, save_plot: false": [*RUN, "save_plot=false", new],
        "train.py, one step": [*RUN, new],
        "train.py --help": ["train.py", "--help"],
        "train.py, a key that does not exist": [*RUN, "batchsize=7"],
        "train.py, a value of a wrong type": [*RUN, "batch_size=x"],
        "train.py, an optimizer that does not exist": [*RUN, "optim_alg=adan", new],
        "submit_multiple.py -d, 108 runs": [
            *("submit_multiple.py", str(folder / "grid.yaml"), "-s", "local", "-d")
        ],
    }
    seconds: dict[str, list[float]] = {what: [] for what in rows}
    for turn in range(TURNS + 1):  # the first one fills the caches
        for what, command in rows.items():
            own = [x + str(turn) + what[:30] if x == new else x for x in command]
            used = processor_seconds(own)
            seconds[what] += [used] * bool(turn)
    usual = {what: statistics.median(each) for what, each in seconds.items()}
    print("| command | processor, s | of `import torch` | of the bare script |\n|---|--:|--:|--:|")
    for what, each in usual.items():
        of_torch, of_bare = each / usual["import torch"], each / usual["a bare script of one step"]
        print(f"| {what} | {each:.2f} | {of_torch:.2f} | {of_bare:.2f} |")
    print(flush=True)


def grids(folder: Path) -> None:
    """jobs/digits-example.yaml, two runs at a time."""
    text = (ROOT / "jobs/digits-example.yaml").read_text()
    seconds: dict[str, list[float]] = {"forks of a warm process": [], "a process a run": []}
    for turn in range(TURNS_OF_GRIDS):
        for what, each in seconds.items():
            job = folder / "digits.yaml"
            results = folder / f"{turn} {what}"
            job.write_text(text.replace("output_dir: results", f"output_dir: {results}"))
            options = ["-s", "local", "--jobs", "2", *["--fresh"] * (what == "a process a run")]
            each.append(processor_seconds(["submit_multiple.py", str(job), *options]))
    print("| the 24 runs of jobs/digits-example.yaml | processor, s | of a process a run |")
    print("|---|--:|--:|")
    usual = {what: statistics.median(each) for what, each in seconds.items()}
    for what, used in usual.items():
        print(f"| {what} | {used:.1f} | {used / usual['a process a run']:.2f} |")


def processor_seconds(command: list[str]) -> float:
    """Of the command, and of all processes that it waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
