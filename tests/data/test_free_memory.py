"""The least of what the machine and the cgroups around this process leave."""

import torch

from src.data.free_memory import _of_cgroups, _of_machine, free_memory


def write(folder, limit: tuple[str, object], used: tuple[str, object]) -> None:
    folder.mkdir(parents=True)
    for name, number in (limit, used):
        (folder / name).write_text(f"{number}\n")


def test_this_machine_has_some():
    assert 1e6 < free_memory(torch.device("cpu")) < 1e14


def test_available_memory_is_read_in_bytes(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    300 kB\n")
    assert list(_of_machine(tmp_path / "meminfo")) == [300 * 1024]
    assert list(_of_machine(tmp_path / "none")) == []


def test_a_job_of_slurm_is_bounded_by_the_cgroups_around_it(tmp_path):
    (tmp_path / "own").write_text("0::/slurm/job_1/step_0\n")
    for folder, most, used in (
        ("slurm", 300, 500),
        ("slurm/job_1", 1000, 400),
        ("slurm/job_1/step_0", "max", 10),
    ):
        write(tmp_path / folder, ("memory.max", most), ("memory.current", used))
    assert list(_of_cgroups(tmp_path / "own", tmp_path)) == [600, 0]


def test_older_cgroups_count_too_also_where_a_container_sees_its_own_alone(tmp_path):
    (tmp_path / "own").write_text("5:cpu:/x\n4:memory:/outside/container\n0::/\n")
    limit, used = ("memory.limit_in_bytes", 900), ("memory.usage_in_bytes", 100)
    write(tmp_path / "memory", limit, used)
    assert list(_of_cgroups(tmp_path / "own", tmp_path)) == [800]
    assert list(_of_cgroups(tmp_path / "none", tmp_path)) == []
