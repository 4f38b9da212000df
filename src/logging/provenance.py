"""Which code, packages, command and machine made a run: provenance.json and uncommitted.diff.

A batch runs from a copy of the code; frozen.json in the copy says which commit it was.
"""

import json
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from src.logging.same_run import read_json
from src.support import ROOT, processes, write_atomically

DIFF = "uncommitted.diff"
FROZEN = "frozen.json"
LONGEST_DIFF = 5_000_000  # bytes; a larger one holds data, not code
COMPUTING_PACKAGES = ("torch", "torchvision", "timm", "numpy")  # whose version may change a number


@dataclass(frozen=True)
class CodeState:
    """Which code it is: the commit and other facts, and the difference to that commit."""

    facts: dict[str, Any]
    diff: str

    @classmethod
    def of_repository(cls, root: Path) -> "CodeState":
        """As git tells; without git or a repository, the commit is None."""

        def git(*arguments: str) -> str:
            options: Any = {"cwd": root, "capture_output": True, "timeout": 20, "check": True}
            try:
                done = subprocess.run(["git", *arguments], **options)
            except (OSError, subprocess.SubprocessError):
                return ""
            return done.stdout.decode(errors="replace")

        diff = git("diff", "HEAD", "--relative", "--no-color", "--no-ext-diff")
        is_kept = len(diff) <= LONGEST_DIFF
        facts = {
            "commit": git("rev-parse", "HEAD").strip() or None,
            "has_uncommitted_changes": bool(diff),
            "diff_is_kept": is_kept,
            "untracked_files": git("ls-files", "--others", "--exclude-standard").splitlines(),
        }
        return cls(facts, diff if is_kept else "")

    @classmethod
    def of_frozen_copy(cls, folder: Path) -> "CodeState | None":
        """What save() wrote into a copy of the code; None where the folder is no copy.

        Raises OSError and ValueError where the copy is damaged.
        """
        if not (folder / FROZEN).exists():
            return None
        diff = folder / DIFF
        facts = json.loads((folder / FROZEN).read_text())
        return cls(facts, diff.read_text() if diff.exists() else "")

    def save(self, copy: Path, *, copied_from: str, files: dict[str, str]) -> None:
        """Into a copy of the code. files: path -> hash."""
        write_atomically(copy / DIFF, self.diff)
        facts = self.facts | {"copied_from": copied_from, "files": files}
        write_atomically(copy / FROZEN, json.dumps(facts, indent=1))


def write_provenance(folder: Path, place: tuple[int, int] | None = None) -> list[str]:
    """Write provenance.json, and uncommitted.diff where the code differs from its commit.

    place: (number from 0, how many) of runs that this process trains together. Returns what
    differs from the attempt before that might change the result: ['torch: was …'].
    """
    code = _code_of_all() if place else _code()
    if code.diff:
        write_atomically(folder / DIFF, code.diff)
    else:
        (folder / DIFF).unlink(missing_ok=True)  # of an attempt with other code
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        **{key: value for key, value in code.facts.items() if key != "files"},
        "command": sys.argv,
        "directory": os.getcwd(),
        "python": sys.version,
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "processor": _processor(),
            "cpu_count": os.cpu_count(),
            "slurm_job": processes.slurm_job(),
            "visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        },
        "packages": _packages(),
        "earlier_attempts": [],
    }
    if place:
        facts["stack"] = {"number": place[0], "runs": place[1]}
    differences: list[str] = []
    with suppress(
        LookupError, AttributeError, TypeError
    ):  # there is no such file, or a damaged one
        before = read_json(folder / "provenance.json")
        before["packages"] = {_usual_name(n): v for n, v in before["packages"].items()}
        packages = before["packages"].items() - facts["packages"].items()
        attempt = {k: v for k, v in before.items() if k not in ("packages", "earlier_attempts")}
        attempt |= {"other_packages": dict(sorted(packages))}
        facts["earlier_attempts"] = [*before["earlier_attempts"], attempt]
        earlier, now = _what_computes(before), _what_computes(facts)
        differences = [f"{k}: was {earlier[k]}, is {now[k]}" for k in now if earlier[k] != now[k]]
    write_atomically(folder / "provenance.json", json.dumps(facts, indent=1))
    return differences


def _code() -> CodeState:
    return CodeState.of_frozen_copy(ROOT) or CodeState.of_repository(ROOT)


_code_of_all = cache(_code)  # git takes longer than a small run


def _what_computes(facts: dict[str, Any]) -> dict[str, Any]:
    """What may change a number: the code, the processor, the packages that compute."""
    found = {"commit": facts.get("commit"), "processor": facts["machine"].get("processor")}
    return found | {name: facts["packages"].get(name) for name in COMPUTING_PACKAGES}


@cache
def _packages() -> dict[str, str]:
    """Name -> version, by the names of folders: to read a few hundred files takes 0.2 s."""
    found: dict[str, str] = {}
    for folder in map(Path, sys.path):
        for path in folder.glob("*-info"):
            if match := re.fullmatch(r"(.+?)-([^-]+)(-py[\d.]+)?\.(dist|egg)-info", path.name):
                found.setdefault(_usual_name(match[1]), match[2])  # the first one is imported
    return dict(sorted(found.items()))


def _usual_name(package: str) -> str:
    """'Ruamel_yaml' -> 'ruamel-yaml': the one of its names that packages are compared by."""
    return re.sub(r"[-_.]+", "-", package).lower()


def _processor() -> str:
    """The model's name on Linux, where platform.processor() is often empty."""
    with suppress(OSError):
        match = re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return match[1].strip() if match else platform.machine()
    return platform.processor()
