"""The agent's watcher, which runs from an instance's first minute to its last: many days of its steps, and what the process holds."""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from soaking.agent_program import load_agent
from soaking.process import memory_of, open_files

_NOTEBOOKS = 40
_EDITED_EVERY = 60
_SAMPLES = 10


@dataclass
class Outcome:
    """
    What became of the watcher.

    Attributes:
        memory_kb: Resident memory at equal distances; the first once everything was done once.
        files: Open files at the same moments.
    """

    steps: int = 0
    days: float = 0.0
    memory_kb: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    log_bytes: int = 0
    seconds: float = 0.0

    def violations(self, *, grown_kb: int = 2048) -> list[str]:
        """Name what grew."""
        found = []
        if self.memory_kb[-1] - self.memory_kb[0] > grown_kb:
            found.append(f"memory grew by {self.memory_kb[-1] - self.memory_kb[0]} kB")
        if self.files[-1] > self.files[0] or self.threads[-1] > self.threads[0]:
            found.append(f"{self.files[-1]} files and {self.threads[-1]} threads are open")
        return found


def soak(days: float, *, folder: Path, say: Callable[[str], None]) -> Outcome:
    """Let the watcher step through so many days; a file is edited every five minutes of them."""
    agent, outcome, began = load_agent(), Outcome(days=days), time.monotonic()
    clock = _Clock()
    agent.time = clock.module
    watch = _watcher(agent, folder, clock, days)
    steps = int(days * 86400 / agent.TICK_S)
    every = max(1, steps // _SAMPLES)
    for step in range(steps):
        clock.now += agent.TICK_S
        if step % _EDITED_EVERY == 0:
            (watch.here.work / f"{step % _NOTEBOOKS}.ipynb").write_text(str(step))
        watch.step(clock.now)
        if step % every == every - 1:
            _look(outcome)
            say(f"{step + 1:>7} steps: {outcome.memory_kb[-1]} kB, {outcome.files[-1]} files")
    outcome.steps, outcome.seconds = steps, time.monotonic() - began
    outcome.log_bytes = (folder / "var/log/gpulab/agent.log").stat().st_size
    return outcome


def _look(outcome: Outcome) -> None:
    gc.collect()
    outcome.memory_kb.append(memory_of(os.getpid(), unit_bytes=1024))
    outcome.files.append(open_files())
    outcome.threads.append(threading.active_count())


def _watcher(agent: Any, root: Path, clock: _Clock, days: float) -> Any:
    spec = {
        "version": 1,
        "launch": "soak",
        "user": "ubuntu",
        "deadline": agent.iso(clock.now + (days + 1) * 86400),
        "idle_minutes": 0,
        "budget_usd": None,
        "usd_per_hour": "0.2",
        "jupyter_port": 8888,
        "keep": None,
    }
    place = root / "etc/gpulab/spec.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(spec))
    here = agent.Here(str(root))
    here.work.mkdir(parents=True)
    here.log("a soak")
    limits = {"born": clock.now, "instance": "i-soak"}
    agent.write_json(here.path("var/lib/gpulab/limits.json"), limits)
    # Armed already, and for good: the watchdog is a process of its own and not what is looked at.
    end = agent.read_limits(here).end[1]
    armed = {"end": end, "monotonic": clock.now + (end - clock.now)}
    agent.write_json(here.path("run/gpulab/armed.json"), armed)
    return agent.Watch(here, _Metadata(clock))


class _Clock:
    """The watcher's time, which passes as fast as it steps."""

    def __init__(self) -> None:
        self.now = 1_770_000_000.0
        self.module = SimpleNamespace(
            time=lambda: self.now,
            monotonic=lambda: self.now,
            time_ns=lambda: int(self.now * 1e9),
            process_time=time.process_time,
            sleep=lambda seconds: None,
        )


class _Metadata:
    """A metadata service that has nothing to announce."""

    answers, skew_s = True, 0.0

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def get(self, path: str) -> bytes | None:
        """Nothing is there."""

    def now(self) -> float:
        """The watcher's time."""
        return self._clock.now
