"""What a run uses of the machine: few samples, right numbers, and never in the way of the run."""

import json
import os
import subprocess
import sys
import threading
import time

import pandas as pd
import psutil
import pytest

from src.logging import machine_use
from src.logging.machine_use import (
    MachineUse,
    Sampler,
    Uses,
    gpu_warnings,
    mean_and_peak,
)
from src.logging.records import Stats
from tests.several_processes import together
from train import experiment_generator, run_experiment

TRAIN = {"time": 100.0, "data_time": 10.0}


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


BURN_AND_WAIT = """
import sys, time
while time.process_time() < 0.5: pass
print("burnt", flush=True)
sys.stdin.read()
"""


def test_processor_time_of_this_process_and_its_children_counts_as_cores():
    before, sampler, after = time.monotonic(), Sampler(Uses()), time.monotonic()
    spent = time.process_time()
    command = [sys.executable, "-c", BURN_AND_WAIT]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen(command, **pipes, text=True)
    burn(0.3)
    assert child.stdout.readline() == "burnt\n"
    in_child, shortest = _processor_time(child.pid), time.monotonic() - after
    sample = sampler()
    in_all, longest = time.process_time() - spent + in_child, time.monotonic() - before
    assert 0.8 * in_all / longest < sample["cores"] < 1.2 * in_all / shortest
    child.communicate()


def _processor_time(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def test_memory_and_its_peak_are_those_of_the_run():
    (error,) = together(1, take_and_give_back)  # a process without children of other tests
    assert error is None


def take_and_give_back() -> None:
    sampler = Sampler(Uses())
    before = sampler()["memory_gb"]
    block = bytearray(300_000_000)
    in_use = sampler()
    assert in_use["memory_gb"] - before == pytest.approx(0.3, abs=0.05)
    del block
    after = sampler()
    assert after["memory_gb"] < in_use["memory_gb"] - 0.2
    assert after["memory_peak_gb"] >= in_use["memory_gb"]
    assert 0 < after["memory_share"] < 1


def test_a_launcher_that_is_gone_leaves_the_samples_of_this_process():
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    sampler = Sampler(Uses(root=launcher.pid))
    launcher.communicate(b"\n")
    assert sampler()["memory_gb"] == pytest.approx(
        psutil.Process().memory_info().rss / 1e9, rel=0.2
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts a run's own")
def test_what_is_written_to_the_disk_counts(tmp_path):
    began, sampler, looked = time.monotonic(), Sampler(Uses()), time.monotonic()
    before = psutil.Process().io_counters().write_bytes
    with open(tmp_path / "file", "wb") as file:
        file.write(os.urandom(20_000_000))
        file.flush()
        os.fsync(file.fileno())
    written = psutil.Process().io_counters().write_bytes - before
    shortest = time.monotonic() - looked
    rate, longest = sampler()["disk_write_mb_s"], time.monotonic() - began
    assert 0.9 * written / 1e6 / longest <= rate <= 1.1 * written / 1e6 / shortest
    assert written >= 20_000_000 or written == 0  # where /tmp is in memory


def test_only_a_small_share_of_a_core_is_taken_however_long_a_sample_takes(tmp_path, monkeypatch):
    waits = []

    def wait(seconds):
        waits.append(seconds)
        return len(waits) > 3

    use = MachineUse()
    monkeypatch.setattr(use.stopping, "wait", wait)
    use.path = tmp_path / "system.csv"
    use._run(lambda: burn_in_thread(0.05) or {"cores": 1.0}, interval=1.0)
    assert waits[0] == 1.0
    assert all(0.05 / seconds < 0.005 for seconds in waits[1:])


def burn_in_thread(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_an_epoch_has_mean_and_peak():
    samples = [{"cores": 1.0, "memory_gb": 2.0}, {"cores": 3.0}, {"cores": 2.0}]
    samples[0]["memory_peak_gb"], samples[2]["memory_peak_gb"] = 2.5, 3.5
    assert mean_and_peak(samples) == {
        "cores_mean": 2.0,
        "cores_peak": 3.0,
        "memory_gb_mean": 2.0,
        "memory_gb_peak": 2.0,
        "memory_peak_gb": 3.5,
    }


@pytest.mark.parametrize(
    ("samples", "train", "key"),
    [
        ([{"gpu0_use": 0.5}], {"time": 100.0, "data_time": 31.0}, "num_workers (2 now"),
        ([{"gpu0_use": 0.1}] * 3, TRAIN, "GPU 0 of 1 was busy for 10% of the time: raise batch_s"),
    ],
)
def test_a_warning_names_the_key_to_change(samples, train, key):
    (words,) = gpu_warnings(samples, train, 1, 2).values()
    assert key in words


def test_memory_that_runs_short_is_reported_at_once_and_once(tmp_path, monkeypatch, log_lines):
    use = MachineUse()
    samples = iter([{"memory_share": share} for share in (0.5, 0.9, 0.93, 0.95)])
    use.path = tmp_path / "system.csv"
    monkeypatch.setattr(use.stopping, "wait", lambda _: len(use.samples) == 4)
    use._run(lambda: next(samples), interval=1.0)
    (line,) = log_lines
    assert line.startswith("93% of the memory limit is in use: lower num_workers or batch_size")


@pytest.mark.parametrize(
    ("samples", "train", "num_gpus"),
    [
        ([{"gpu0_use": 0.5, "memory_share": 0.89}] * 3, {"time": 100.0, "data_time": 29.0}, 1),
        ([{"gpu0_use": 0.1}] * 2, TRAIN, 1),  # too few samples
        ([{"cores": 0.5}] * 3, {"time": 100.0, "data_time": 90.0}, 0),  # no GPU to starve
        ([], {"time": 0.0, "data_time": 0.0}, 1),
    ],
)
def test_all_is_well_without_a_warning(samples, train, num_gpus):
    assert gpu_warnings(samples, train, num_gpus, 2) == {}


def test_a_gpu_that_waits_for_data_is_not_called_idle_too():
    found = gpu_warnings([{"gpu0_use": 0.1}] * 3, {"time": 100.0, "data_time": 80.0}, 1, 2)
    assert list(found) == ["starving"]


def test_each_gpu_is_asked_by_its_own_identifier(monkeypatch):
    """Stands in for a driver: the answers of NVIDIA's library where there is a card."""
    import pynvml

    asked = {"GPU-a": 11, "GPU-b": 22}

    def power(handle):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    for name, answer in {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda x: asked[x],
        "nvmlDeviceGetUtilizationRates": lambda h: type("Rates", (), {"gpu": h}),
        "nvmlDeviceGetMemoryInfo": lambda h: type("Memory", (), {"used": h * 1e9}),
        "nvmlDeviceGetPowerUsage": power,
        "nvmlDeviceGetTemperature": lambda h, _: 40 + h,
    }.items():
        monkeypatch.setattr(pynvml, name, answer)
    sample = Sampler(Uses(gpus=("GPU-b", "GPU-a")))()
    found = {name: value for name, value in sample.items() if name.startswith("gpu")}
    assert found == {
        "gpu0_use": 0.22,
        "gpu0_memory_gb": 22.0,
        "gpu0_temperature_c": 62.0,
        "gpu1_use": 0.11,
        "gpu1_memory_gb": 11.0,
        "gpu1_temperature_c": 51.0,
    }


def test_without_nvidia_s_library_the_log_says_so_and_the_rest_is_recorded(log_lines):
    sample = Sampler(Uses(gpus=("GPU-1",)))()
    if any(name.startswith("gpu") for name in sample):
        pytest.skip("there is a GPU")
    assert "cores" in sample
    assert [line for line in log_lines if "the use of GPUs is not recorded" in line]


# ---- In a run ----------------------------------------------------------------------------


def test_a_run_leaves_its_use_and_nothing_else_changes(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(machine_use, "MAX_CORE_SHARE", 1.0)  # else a short run has one sample
    keys = {"train_length": 5, "batch_size": 10}
    plain = run_experiment(digits(output_dir=str(tmp_path / "plain"), system_interval=0, **keys))
    used = run_experiment(digits(output_dir=str(tmp_path / "used"), system_interval=0.02, **keys))
    assert not (tmp_path / "plain" / "system.csv").exists()
    assert [c for c in plain if c.startswith("system/")] == []
    system = pd.read_csv(tmp_path / "used" / "system.csv")
    assert len(system) > 1
    assert {"timestamp", "cores", "memory_gb", "memory_peak_gb"} <= {*system}
    own = [c for c in used if c.startswith("system/")]
    assert {"system/cores_mean", "system/cores_peak", "system/memory_gb_peak"} <= {*own}
    assert used[own].notna().any().all()
    assert list(used.drop(columns=own)) == list(plain)
    measures = ["train/loss", "test/last/accuracy"]
    pd.testing.assert_frame_equal(used[measures], plain[measures])
    assert list(Stats.read(str(tmp_path / "used"))) == list(used)
    peaks = system["cores"].max(), used["system/cores_peak"].max()
    assert peaks[0] == pytest.approx(peaks[1], rel=0.001) or len(system) > used["epoch"].max()


def test_an_attempt_that_resumes_appends_and_another_machine_starts_a_new_file(tmp_path):
    path = tmp_path / "system.csv"

    def write(sample):
        attempt = MachineUse()
        attempt.path = path
        attempt.write(sample)

    write({"cores": 1.0, "memory_gb": 2.0})
    write({"cores": 3.0, "memory_gb": 4.0})
    assert pd.read_csv(path)["cores"].tolist() == [1.0, 3.0]
    write({"cores": 5.0, "gpu0_use": 0.5})  # another machine
    assert pd.read_csv(path)["cores"].tolist() == [5.0]
    assert pd.read_csv(tmp_path / "system.1.csv")["cores"].tolist() == [1.0, 3.0]


def test_a_new_run_in_the_folder_of_a_broken_one_has_its_own_samples_alone(digits, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "status.json").write_text("{}")  # it is the folder of a run
    (folder / "system.csv").write_text("timestamp,cores\nlong ago,7\n")
    (folder / "system.1.csv").write_text("timestamp\nlonger ago\n")
    run_experiment(digits(train_length=1, system_interval=3600))
    assert not list(folder.glob("system*.csv"))


def test_a_full_disk_ends_the_sampling_with_a_warning_and_not_the_run(tmp_path, log_lines):
    use = MachineUse()
    use.start(tmp_path / "no folder" / "system.csv", 0.01, Uses())
    use.thread.join(10)
    use.stop()
    assert [line for line in log_lines if line.startswith("machine use is not recorded any more")]


def test_the_thread_ends_with_the_run(digits):
    run = experiment_generator(digits(system_interval=0.01))
    next(run)
    assert "machine use" in [thread.name for thread in threading.enumerate()]
    list(run)
    assert "machine use" not in [thread.name for thread in threading.enumerate()]


def test_the_state_of_a_run_says_nothing_of_it_that_counts(digits, tmp_path):
    run_experiment(digits(system_interval=0.01, train_length=3))
    done = json.loads((tmp_path / "run" / "done").read_text())
    assert done["in_force"]["system_interval"] == 0.01
    longer = run_experiment(digits(system_interval=5, train_length=4))
    assert len(longer) == 4


def test_a_process_that_is_hidden_from_us_is_reported_and_the_run_goes_on(tmp_path, log_lines):
    use = MachineUse()
    use.start(tmp_path / "system.csv", 0.01, Uses(root=2**22 + 1))
    assert use.thread is None
    use.stop()
    assert [line for line in log_lines if line.startswith("machine use is not recorded:")]
