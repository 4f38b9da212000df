"""A real Slurm cluster on this machine, and a repository to submit from."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from src.grid.snapshot import _listed
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parents[1] / "slurm_cluster.sh"
# A submit script that runs in no time, says where it ran, and how often.
QUICK = """\
#!/bin/bash
#SBATCH --mem=100M
folder=$(dirname "$1")
echo "on $SLURMD_NODENAME"
echo ran >> "$folder/ran"
[ ! -e "$folder/fail" ] || exit 1
echo '{"outcome": "finished"}' > "$folder/done"
"""


@dataclass
class Cluster:
    """slurm_cluster.sh up, with its settings."""

    settings: dict[str, str]
    folder: str = field(default_factory=lambda: tempfile.mkdtemp(prefix="slurm-"))

    def __post_init__(self) -> None:
        self.env = os.environ | {"SLURM_CONF": f"{self.folder}/etc/slurm.conf"}
        self.call("up")

    def call(self, *command: str) -> str:
        settings = {f"SLURM_SANDBOX_{k}": v for k, v in self.settings.items()}
        env = os.environ | settings | {"SLURM_SANDBOX": self.folder}
        done = subprocess.run([SCRIPT, *command], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def slurm(self, *command: str) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self, states: str = "all", form: str = "%T") -> list[str]:
        return self.slurm("squeue", "-h", "-r", "-t", states, "-o", form).splitlines()

    def wait(self, seconds: float = PATIENCE) -> None:
        """Until nothing waits or runs."""
        until = time.monotonic() + seconds
        while self.jobs("PD,R,CG"):
            assert time.monotonic() < until, self.jobs("all", "%i %T %r %j")
            time.sleep(0.3)


@pytest.fixture(scope="session")
def start_cluster():
    """start_cluster(NODES='4', …) -> a Cluster; all of them end with the tests."""
    if not (shutil.which("slurmctld") and shutil.which("munged")):
        reason = "Slurm is not installed (apt-get install slurmctld slurmd slurm-client munge)"
        if os.environ.get("SLURM_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    clusters = []

    def start(**settings: str) -> Cluster:
        clusters.append(Cluster(settings))
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.call("down", "--purge")


@pytest.fixture(scope="session")
def shared_cluster(start_cluster) -> Cluster:
    return start_cluster(MAX_ARRAY="30")


@pytest.fixture
def cluster(shared_cluster) -> Iterator[Cluster]:
    """Four nodes of two CPUs, arrays of at most 30 tasks; empty before and after."""
    yield shared_cluster
    shared_cluster.slurm("scancel", "-u", str(os.getuid()))
    shared_cluster.wait()


@dataclass
class Repository:
    """A fork with a commit, and what its user types."""

    path: Path

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def job(self, parameters: str, name: str = "x") -> None:
        """Writes job.yaml; parameters: YAML in flow style."""
        self.write("job.yaml", f"job_details: {{name: {name}}}\nparameters: {parameters}\n")

    def start(self, *arguments: str, env=None, **options) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.path,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def submit(self, *arguments: str, env=None, code: int = 0) -> str:
        """Runs submit_multiple.py; what it printed, errors last."""
        process = self.start("submit_multiple.py", *arguments, env=env)
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, f"{process.returncode}: {output}{errors}"
        return output + errors

    @property
    def batch(self) -> Path:
        (batch,) = (self.path / "results").glob("[0-9]*")
        return batch

    def rows(self) -> list[Path]:
        return sorted(self.batch.glob("[0-9]*/"))

    def count(self, name: str) -> list[int]:
        """How many lines that file has in each row; 0 where there is none."""
        files = [row / name for row in self.rows()]
        return [len(f.read_text().splitlines()) if f.exists() else 0 for f in files]


@pytest.fixture
def repository(tmp_path) -> Repository:
    root = tmp_path / "my fork"
    for path in _listed(ROOT, "-c", "-o"):
        if (ROOT / path).exists() and path.parts[0] not in ("tests", "benchmarks"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, root / path)
    found = Repository(root)
    found.write("quick.sh", QUICK)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a fork"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    return found
