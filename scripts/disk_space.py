"""
Whether the disk has room for what the gate makes, asked before it begins: a full disk shows as something else an hour later.
Standard library only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import environment
from environment import CHECKOUT


@dataclass(frozen=True)
class Need:
    """
    What a step makes in a folder that need not exist yet.

    Attributes:
        gb: GB of 10^9 bytes at its largest, as measured on a fresh checkout.
        anew_gb: How much of it is made each time; the rest stays for the next run.
    """

    folder: Path
    gb: float
    anew_gb: float


@dataclass(frozen=True)
class Room:
    """One disk: where it is mounted, what is still to be made on it, and what is free, in GB."""

    mounted_at: Path
    needed_gb: float
    free_gb: float

    @property
    def is_enough(self) -> bool:
        """Whether it will do."""
        return self.free_gb >= self.needed_gb

    def __str__(self) -> str:
        return (
            f"{self.needed_gb:.1f} GB of disk are needed on {self.mounted_at}, {self.free_gb:.1f} GB are free"
            + ("" if self.is_enough else ": too little")
        )


def needs(steps: Iterable[str]) -> list[Need]:
    """What these steps make, as measured in November 2026."""
    names = set(steps)
    found = [Need(CHECKOUT / ".venv", 1.0, 0.0), Need(_uv_cache(), 0.7, 0.1)]
    if names & {"unit", "aws", "cli", "machine", "demo"}:
        found.append(Need(Path(tempfile.gettempdir()), 0.5, 0.5))
    if "wheel" in names:
        found.append(Need(CHECKOUT / "build", 0.2, 0.1))
    if "demo" in names:
        found.append(Need(CHECKOUT / ".demo", 0.6, 0.6))
    if "machine" in names:
        # A base of 0.4, packages of 3.0 (the environments of the tests, unpacked once and linked into each machine),
        # and the disks of eight machines at once.
        found.append(Need(_machines(), 4.8, 1.4))
    return found


def rooms(
    wanted: Iterable[Need],
    *,
    free_bytes: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
) -> list[Room]:
    """Compare what is wanted with what is free, a line for each disk; what an earlier run has left is not made again."""
    disks: dict[int, Room] = {}
    for need in wanted:
        place = _existing(need.folder)
        there = environment.disk_mb(need.folder) / 1000 if need.anew_gb < need.gb else 0.0
        missing = max(need.anew_gb, need.gb - there)
        disk = place.stat().st_dev
        before = disks.get(disk, Room(_mount(place), 0.0, free_bytes(place) / 1e9))
        disks[disk] = Room(before.mounted_at, before.needed_gb + missing, before.free_gb)
    return list(disks.values())


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)


def _mount(place: Path) -> Path:
    """The topmost folder of a disk, by which `df` names it."""
    above = place.parent
    return place if above == place or above.stat().st_dev != place.stat().st_dev else _mount(above)


def _uv_cache() -> Path:
    return Path(environment.surroundings()["UV_CACHE_DIR"])


def _machines() -> Path:
    """Where booted machines and what they are made of lie; `gpulab.sandbox.machines.container.image` decides it."""
    own = os.environ.get("GPULAB_SANDBOX_CACHE")
    return Path(own or f"{environment.surroundings()['XDG_CACHE_HOME']}/gpulab/sandbox")
