"""What the machine and the cgroups around a process leave to it."""

import pytest

from src.support.limits import Memory, _of_cgroups, _of_machine, _quotas, memories, num_cores


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_this_machine_has_memory_and_cores():
    assert all(1e6 < m.limit < 1e14 and 0 <= m.free <= m.limit for m in memories())
    assert memories()
    assert 0 < num_cores() < 10_000


def test_memory_of_the_machine_is_read_in_bytes(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nHugePages: 0\nMemAvailable:    300 kB\n")
    (memory,) = _of_machine(tmp_path / "meminfo")
    assert memory == Memory(900 * 1024, 300 * 1024, "this machine")
    assert memory.used_share == pytest.approx(2 / 3)
    assert list(_of_machine(tmp_path / "none")) == []


def test_a_job_of_slurm_is_bounded_by_the_cgroups_around_it(tmp_path):
    (tmp_path / "own").write_text("0::/slurm/job_1/step_0\n")
    write(tmp_path / "slurm", memory__max=300, memory__current=500)
    write(tmp_path / "slurm/job_1", memory__max=1000, memory__current=400)
    write(tmp_path / "slurm/job_1/step_0", memory__max="max", memory__current=10)
    found = [(m.limit, m.free) for m in _of_cgroups(tmp_path / "own", tmp_path)]
    assert found == [(1000, 600), (300, 0)]


def test_pages_of_files_that_were_read_are_no_memory_in_use(tmp_path):
    (tmp_path / "own").write_text("0::/job\n")
    stat = "anon 100\nfile 260\nactive_file 50\ninactive_file 200\nslab 1"
    write(tmp_path / "job", memory__max=1000, memory__current=400, memory__stat=stat)
    assert [m.free for m in _of_cgroups(tmp_path / "own", tmp_path)] == [850]
    stat = "active_file 1\ninactive_file 2\ntotal_active_file 20\ntotal_inactive_file 30"
    write(tmp_path / "job", memory__stat=stat)
    assert [m.free for m in _of_cgroups(tmp_path / "own", tmp_path)] == [650]


def test_older_cgroups_count_too_also_where_a_container_sees_its_own_alone(tmp_path):
    (tmp_path / "own").write_text("5:cpu:/x\n4:memory:/outside/container\n0::/\n")
    write(tmp_path / "memory", memory__limit_in_bytes=900, memory__usage_in_bytes=100)
    assert [m.free for m in _of_cgroups(tmp_path / "own", tmp_path)] == [800]
    write(tmp_path / "memory", memory__limit_in_bytes=2**63 - 4096)
    assert list(_of_cgroups(tmp_path / "own", tmp_path)) == []
    assert list(_of_cgroups(tmp_path / "none", tmp_path)) == []


def test_a_share_of_the_time_counts_as_cores(tmp_path):
    (tmp_path / "own").write_text("3:cpu,cpuacct:/job\n0::/job\n")
    write(tmp_path, cpu__max="max 100000")
    write(tmp_path / "job", cpu__max="150000 100000")
    write(tmp_path / "cpu,cpuacct/job", cpu__cfs_quota_us=400000, cpu__cfs_period_us=100000)
    write(tmp_path / "cpu,cpuacct", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert list(_quotas(tmp_path / "own", tmp_path)) == [4.0, 1.5]
