"""Which code, packages, command and machine made a run."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path

from src.files import write_atomically

ROOT = Path(__file__).parents[2]
LONGEST_DIFF = 5_000_000  # bytes; a larger one holds data, not code


def write_provenance(folder: Path) -> None:
    """provenance.json, and uncommitted.diff where the code differs from its commit."""
    diff = _git("diff", "HEAD", "--no-color", "--no-ext-diff")
    if is_kept := len(diff or "") <= LONGEST_DIFF:
        write_atomically(folder / "uncommitted.diff", diff or "")
    facts = {
        "commit": (_git("rev-parse", "HEAD") or "").strip() or None,
        "has_uncommitted_changes": bool(diff),
        "diff_is_kept": is_kept,
        "untracked_files": (_git("ls-files", "--others", "--exclude-standard") or "").splitlines(),
        "command": sys.argv,
        "directory": os.getcwd(),
        "python": sys.version,
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "processor": _processor(),
            "cpu_count": os.cpu_count(),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        },
        "packages": dict(sorted((d.name, d.version) for d in distributions() if d.name)),
    }
    write_atomically(folder / "provenance.json", json.dumps(facts, indent=1))


def _git(*arguments: str) -> str | None:
    """What git prints, or None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _processor() -> str:
    """The model's name on Linux, where platform.processor() is often empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
