"""When an instance is idle: each trap that ended somebody's training, or kept an empty machine alive, is a test."""

from __future__ import annotations

import json
import os
import time

import pytest

from gpulab.agent.agent import Idle, Sample, Sampler, write_json

START = 1_000_000.0
HOUR = 3600.0


def a_sample(now: float, **changes) -> Sample:
    quiet = Sample(
        now=now,
        cpu_cores=0.02,
        cores=4,
        gpu_percent=0,
        network_bytes_per_s=0.0,
        kernels={},
        input_at=0.0,
        saved_at=0.0,
        is_setting_up=False,
    )
    return quiet._replace(**changes)


def idle_after_an_hour(**changes) -> float:
    """Minutes an instance counts as idle after an hour of samples that all look the same."""
    idle = Idle(START)
    since = START
    for minute in range(1, 61):
        now = START + minute * 60
        since = idle.look(
            a_sample(now, **{k: v(now) if callable(v) else v for k, v in changes.items()})
        )
    return (START + HOUR - since) / 60


def test_nothing_for_an_hour_is_an_hour_idle():
    """The commonest waste: a student went home and the GPU ran on."""
    assert idle_after_an_hour() == 60


@pytest.mark.parametrize(
    "sign",
    [
        {"gpu_percent": 5},
        {"cpu_cores": 0.4},
        {"kernels": {"k": "busy"}, "gpu_percent": 60},
        {"kernels": {"k": "busy"}, "cpu_cores": 1.0},
        {"kernels": {"k": "busy"}, "network_bytes_per_s": 300_000.0},
        {"kernels": {"k": "idle"}, "cpu_cores": 1.0},
        {"is_setting_up": True},
        {"input_at": lambda now: now - 20},
        {"kernels": {"k": "idle"}, "saved_at": lambda now: now - 30},
    ],
    ids=[
        "GPU works without a kernel",
        "CPU works without a kernel",
        "silent training on the GPU",
        "silent training on one core",
        "a cell downloads a data set",
        "training in a terminal",
        "the environment is being installed",
        "keys are pressed in a terminal",
        "short cells are run: their notebook is edited and saved",
    ],
)
def test_work_is_never_idle(sign):
    """A silent cell shows no activity to JupyterLab for hours; ending it loses an afternoon (jupyter/notebook#3932)."""
    assert idle_after_an_hour(**sign) < 1


@pytest.mark.parametrize(
    "sign",
    [
        {"kernels": {"k": "starting"}},
        {"kernels": {"k": "unknown"}},
        {"kernels": {"k": "idle"}},
        {"kernels": lambda now: {"k": "busy" if (now - START) % 240 == 0 else "idle"}},
        {"network_bytes_per_s": 5_000_000.0},
        {"input_at": lambda now: now + 10 * HOUR},
        {"saved_at": lambda now: now + 10 * HOUR},
        {"cpu_cores": 0.39},
        {"gpu_percent": 4},
    ],
    ids=[
        "a kernel stuck in starting",
        "a dead kernel",
        "a notebook left open",
        "a tab that shows the memory of kernels, and makes them busy for a moment",
        "traffic without a kernel: an open tab or tunnel",
        "a clock that is wrong",
        "a file from the future, out of an archive",
        "the noise of an empty machine",
        "the noise of an empty GPU",
    ],
)
def test_an_open_door_is_not_work(sign):
    """An open tab or tunnel and stuck kernels kept paid machines alive for weeks (dask/dask-cloudprovider, SageMaker)."""
    assert idle_after_an_hour(**sign) == 60


def test_a_busy_kernel_that_burns_nothing_counts_as_idle_after_its_start():
    """`while True: sleep(1)` and `input()` are busy for ever (jupyterlab/jupyterlab#12530)."""
    minutes = idle_after_an_hour(kernels={"k": "busy"})

    assert minutes == 58


def test_a_busy_kernel_that_prints_and_burns_nothing_counts_as_idle():
    """The open tab saves the notebook each time something is printed; that is no work."""
    minutes = idle_after_an_hour(kernels={"k": "busy"}, saved_at=lambda now: now)

    assert minutes == 58


def test_the_start_and_the_end_of_a_cell_are_signs_of_life():
    """Someone who starts a cell every half hour is there; and when one has ended, somebody is about to look at it."""
    idle = Idle(START)
    states = ["idle", "busy", "busy", "busy", "busy", "idle", "idle"]

    since = [
        idle.look(a_sample(START + 1800 + 30 * n, kernels={"k": state})) - START
        for n, state in enumerate(states)
    ]

    assert since == [0, 0, 1860, 1860, 1860, 1950, 1950]


def test_one_core_of_a_large_machine_is_work():
    """A tenth of 48 cores would end a single-threaded training."""
    assert idle_after_an_hour(cpu_cores=0.6, cores=48) < 1


def test_where_nothing_counts_the_cpu_a_busy_kernel_is_work():
    """On a sandbox machine without a boot the CPU belongs to the whole laptop; a rehearsal must not end a training."""
    assert idle_after_an_hour(cpu_cores=None, kernels={"k": "busy"}) < 1


def test_the_sampler_reads_kernels_without_becoming_activity(here, serve):
    """Asked without no_track_activity, JupyterLab counts our own question as a sign of life, for ever."""
    kernel = {"id": "k1", "execution_state": "idle", "last_activity": "2026-11-23T10:00:00.1Z"}
    jupyter = serve(**{"/api/kernels": json.dumps([kernel])})
    write_json(here.path("run/gpulab/ports.json"), {"8888": jupyter.port})
    here.path("run/gpulab/token").write_text("secret")

    sample = Sampler(here).sample(START, gpu_percent=0, saved_at=0.0)

    assert {"k1": "idle"} == sample.kernels
    assert ["/api/kernels?no_track_activity=1"] == jupyter.asked


def test_keys_count_and_output_does_not(here):
    """A forgotten `top` prints for ever; only a key that is read moves a terminal's access time."""
    terminal = here.path("dev/pts/0")
    terminal.parent.mkdir(parents=True)
    terminal.touch()
    os.utime(terminal, (START - 500, START - 1))

    sample = Sampler(here).sample(START, gpu_percent=0, saved_at=0.0)

    assert START - 500 == sample.input_at


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("sys/fs/cgroup/cpu.stat", "usage_usec 1000000\n", "usage_usec 91000000\n"),
        ("proc/stat", "cpu  100 0 0 900 50 0 0 0 0 0\n", "cpu  9000 0 100 990 99 0 0 0 0 0\n"),
    ],
)
def test_the_sampler_counts_the_cores_that_work(here, name, before, after):
    """A container's own cgroup is asked first: its /proc/stat would be the whole host's."""
    counter = here.path(name)
    counter.parent.mkdir(parents=True)
    counter.write_text(before)
    sampler = Sampler(here)
    counter.write_text(after)
    sampler.before = (sampler.before[0] - 90, *sampler.before[1:])

    sample = sampler.sample(START, gpu_percent=0, saved_at=0.0)

    assert round(sample.cpu_cores or 0, 1) == 1.0


def test_a_setup_that_died_is_not_work_for_ever(here):
    """A phase that says `running` in a file of yesterday would keep the instance alive until its deadline."""
    phases = here.path("run/gpulab/phases.json")
    write_json(phases, {"phases": [{"name": "environment", "state": "running"}]})
    now = time.time()
    os.utime(phases, (now, now))
    fresh = Sampler(here).sample(START, gpu_percent=0, saved_at=0.0)
    os.utime(phases, (now - 86400, now - 86400))

    stale = Sampler(here).sample(START, gpu_percent=0, saved_at=0.0)

    assert (True, False) == (fresh.is_setting_up, stale.is_setting_up)
