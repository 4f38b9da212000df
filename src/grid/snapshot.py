"""The frozen code: a copy that the rows of a batch run from, whatever is edited meanwhile.

It holds what git tracks, edits included, and new files that git does not ignore; what git
ignores (data, results, environments) is linked, so that every path leads where it did.
"""

import hashlib
import heapq
import os
import re
import shutil
import subprocess
from pathlib import Path

from src.logging import CodeState
from src.support import UserError

ALWAYS_LINKED = ("data", "results")  # made where they are missing: runs write there
CACHES = ("__pycache__", "*.egg-info", ".*_cache", ".hypothesis", ".ipynb_checkpoints", ".git")
MOST_BYTES = 500_000_000


def freeze(root: Path, into: Path) -> Path:
    """Copy the code of the repository at root to the folder into, which appears whole or not.

    Raises UserError where git does not know the repository, or it holds data.
    """
    files = _code_files(root)
    if Path("train.py") not in files:
        raise UserError(f"{root}: git lists no train.py to freeze; --live runs the code as it lies")
    sizes = {path: (root / path).lstat().st_size for path in files}
    if (total := sum(sizes.values())) > MOST_BYTES:
        largest = ", ".join(map(str, heapq.nlargest(3, sizes, key=sizes.__getitem__)))
        raise UserError(
            f"the code to freeze has {total / 1e6:,.0f} MB, above all {largest}:"
            " name data in .gitignore, or run the code where it lies with --live"
        )
    copy = into.with_name(f".{into.name}.{os.getpid()}")
    try:
        hashes = {str(path): _copy(root, path, copy) for path in files}
        _link_ignored(root, copy)
        CodeState.of_repository(root).save(copy, copied_from=str(root), files=hashes)
        os.replace(copy, into)
    except OSError as error:
        raise UserError(f"output_dir: cannot copy the code to {into}: {error}") from None
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    return into


def frozen_copies(batch: Path) -> list[Path]:
    """code, code.2, … of a batch folder, the newest last."""
    copies = [path for path in batch.glob("code*") if re.fullmatch(r"code(\.\d+)?", path.name)]
    return sorted(copies, key=_number)


def next_copy(batch: Path) -> Path:
    """Where the next one belongs; earlier ones stay, as jobs may run from them."""
    copies = frozen_copies(batch)
    return batch / (f"code.{_number(copies[-1]) + 1}" if copies else "code")


def _number(copy: Path) -> int:
    return int(copy.suffix[1:] or 1)


def changed_since_last_copy(root: Path, batch: Path) -> list[str]:
    """The files that are no longer as in the batch's newest frozen copy; [] where that is not
    known, or there is no copy."""
    try:
        frozen = frozen_copies(batch)[-1:]
        if not frozen or (state := CodeState.of_frozen_copy(frozen[0])) is None:
            return []
        hashes = dict(state.facts["files"])
        now = {str(path): _hash(root / path) for path in _code_files(root)}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []
    return sorted(p for p in hashes.keys() | now.keys() if hashes.get(p, "") != now.get(p, ""))


def repository_of(root: Path) -> Path:
    """Where the code at root is edited: of a frozen copy the repository that it was copied from."""
    try:
        state = CodeState.of_frozen_copy(root)
        return Path(state.facts["copied_from"]) if state else root
    except (OSError, ValueError, LookupError, TypeError):
        return root


def _code_files(root: Path) -> list[Path]:
    """What git tracks or would, but for what runs read and write: data, results, any batch."""
    files = [path for path in _listed(root, "-c", "-o") if os.path.lexists(root / path)]
    left_out = {Path(name) for name in ALWAYS_LINKED}
    left_out |= {path.parent for path in files if path.name == "rows.jsonl"}
    return [path for path in files if not left_out & {path, *path.parents}]


def _listed(root: Path, *kinds: str) -> list[Path]:
    """What git lists below root, a repository within it by its own files."""
    command = ["git", "ls-files", "-z", "--exclude-standard", *kinds]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=True)
    except FileNotFoundError:
        raise UserError("freezing the code takes git; --live runs it where it lies") from None
    except subprocess.CalledProcessError as error:
        words = [*error.stderr.decode(errors="replace").strip().splitlines(), "no repository"]
        raise UserError(
            f"the code cannot be frozen ({words[0]}); `git init && git add .` makes a repository,"
            " --live runs the code where it lies"
        ) from None
    names = dict.fromkeys(done.stdout.split(b"\0"))  # a merge lists a file three times
    paths = [Path(os.fsdecode(name)) for name in names if name]
    if "--directory" in kinds:
        return paths
    found = []
    for path in paths:
        if (root / path).is_symlink() or not (root / path).is_dir():
            found.append(path)
        elif (root / path / ".git").exists():
            found += [path / file for file in _listed(root / path, *kinds)]
    return found


def _copy(root: Path, path: Path, copy: Path) -> str:
    """Copy one file, read-only; its hash. A link leads where it did: within the copy, or out."""
    source, target = root / path, copy / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        leads_to = os.path.normpath(source.parent / os.readlink(source))
        is_within = Path(leads_to).is_relative_to(root)
        target.symlink_to(os.readlink(source) if is_within else leads_to)
    else:
        shutil.copy2(source, target)
        target.chmod(target.stat().st_mode & ~0o222)
    return _hash(source)


def _hash(path: Path) -> str:
    """SHA-256 of a file, or of where a link leads; '' where there is nothing."""
    if path.is_symlink():
        return hashlib.sha256(os.fsencode(os.readlink(path))).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _link_ignored(root: Path, copy: Path) -> None:
    for name in ALWAYS_LINKED:
        if not (copy / name).exists():
            if not os.path.lexists(root / name):
                (root / name).mkdir()
            (copy / name).symlink_to(root / name)
    for path in _listed(root, "-o", "-i", "--directory"):
        is_cache = any(part.match(pattern) for part in map(Path, path.parts) for pattern in CACHES)
        is_linked = path.parts[0] in ALWAYS_LINKED
        if not is_cache and not is_linked and not os.path.lexists(copy / path):
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).symlink_to(root / path)
