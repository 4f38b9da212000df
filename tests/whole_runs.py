"""What tests of whole runs share: the certificate, a grid on this machine, stats without times."""

import os
import shutil
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import pandas as pd
import yaml

from src.logging.records import read_stats
from src.metrics import is_time

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 900


def lasting(stats: pd.DataFrame) -> str:
    """What is the same in each run of a configuration: all but the times."""
    return stats.drop(columns=[c for c in stats if is_time(c)]).to_csv()


def certificate(keys: dict, folder: Path, *options: str, code: Path = ROOT) -> tuple[int, str]:
    """The exit code of verify_resume.py, and what was printed."""
    config, temporary = folder / "cfg.yaml", folder / "temporary"
    config.write_text(yaml.safe_dump({k: v for k, v in keys.items() if k != "output_dir"}))
    short = tempfile.mkdtemp()  # a path with room for the sockets of worker processes
    done = subprocess.run(
        [sys.executable, code / "verify_resume.py", config, *options],
        env=os.environ | {"TMPDIR": short},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    shutil.move(short, temporary)
    return done.returncode, done.stdout.replace(short, str(temporary))


def grid_here(parameters: dict, folder: Path) -> list[pd.DataFrame]:
    """The stats of the rows, two of which run at a time, by `submit_multiple.py -s local`."""
    details = {"name": "grid", "output_dir": str(folder / "batches")}
    parameters = {k: v for k, v in parameters.items() if k != "output_dir"}
    job = folder / "job.yaml"
    job.write_text(yaml.safe_dump({"job_details": details, "parameters": parameters}))
    command = [sys.executable, "submit_multiple.py", job, "-s", "local", "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    batch = folder / "batches" / f"{date.today():%y-%m-%d}-grid"
    return [read_stats(file.parent) for file in sorted(batch.glob("*/stats.csv"))]
