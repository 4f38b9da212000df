"""Which code, packages, command and machine made a run."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from src.support import ROOT, write_atomically

DIFF = "uncommitted.diff"
FROZEN = "frozen.json"  # in a copy of the code that a batch runs from
KINDS = {"packages": dict, "machine": dict, "earlier_attempts": list}  # in provenance.json
LONGEST_DIFF = 5_000_000  # bytes; a larger one holds data, not code


def write_provenance(folder: Path) -> list[str]:
    """provenance.json, and uncommitted.diff where the code differs from its commit.

    Returns what differs from the attempt before that might change the result: ['torch: was …'].
    """
    code, diff = frozen_code(ROOT) or code_state(ROOT)
    if diff:
        write_atomically(folder / DIFF, diff)
    else:
        (folder / DIFF).unlink(missing_ok=True)  # of an attempt with other code
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **code,
        "command": sys.argv,
        "directory": os.getcwd(),
        "python": sys.version,
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "processor": _processor(),
            "cpu_count": os.cpu_count(),
            "slurm_job": slurm_job(),
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        },
        "packages": dict(sorted((d.name, d.version) for d in distributions() if d.name)),
        "earlier_attempts": [],
    }
    if before := _earlier(folder):
        packages = before.get("packages", {}).items() - facts["packages"].items()
        attempt = {k: v for k, v in before.items() if k not in ("packages", "earlier_attempts")}
        attempt |= {"other_packages": dict(sorted(packages))}
        facts["earlier_attempts"] = [*before.get("earlier_attempts", []), attempt]
    write_atomically(folder / "provenance.json", json.dumps(facts, indent=1))
    return _differences(facts, before) if before else []


def _earlier(folder: Path) -> dict[str, Any] | None:
    """None where there is none, or a damaged one."""
    try:
        facts = json.loads((folder / "provenance.json").read_text())
        parts = [(facts.get(key, kind()), kind) for key, kind in KINDS.items()]
        names = facts.get("packages", {}).values()
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    is_whole = all(isinstance(part, kind) for part, kind in parts)
    return facts if is_whole and all(isinstance(name, str) for name in names) else None


def _differences(facts: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """What may change a number: the code, the packages that compute, the processor."""
    pairs = {"commit": (before.get("commit"), facts["commit"])}
    earlier = before.get("machine", {}).get("processor")
    pairs["processor"] = (earlier, facts["machine"]["processor"])
    for name in ("torch", "torchvision", "timm", "numpy"):
        pairs[name] = (before.get("packages", {}).get(name), facts["packages"].get(name))
    return [f"{name}: was {was}, is {now}" for name, (was, now) in pairs.items() if was != now]


def code_state(root: Path) -> tuple[dict[str, Any], str]:
    """(commit and what else identifies the code of a repository, the diff to that commit)."""
    diff = _git(root, "diff", "HEAD", "--relative", "--no-color", "--no-ext-diff") or ""
    is_kept = len(diff) <= LONGEST_DIFF
    untracked = _git(root, "ls-files", "--others", "--exclude-standard") or ""
    facts = {
        "commit": (_git(root, "rev-parse", "HEAD") or "").strip() or None,
        "has_uncommitted_changes": bool(diff),
        "diff_is_kept": is_kept,
        "untracked_files": untracked.splitlines(),
    }
    return facts, diff if is_kept else ""


def frozen_code(root: Path) -> tuple[dict[str, Any], str] | None:
    """What code_state said where this copy of the code was made; None where it is no copy."""
    try:
        facts = json.loads((root / FROZEN).read_text())
        return {k: v for k, v in facts.items() if k != "files"}, (root / DIFF).read_text()
    except FileNotFoundError:
        return None


def slurm_job() -> str | None:
    """'123' or, for a task of an array, '123_4'; None outside Slurm."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, timeout=20)
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
