"""
Removes everything a sandbox left on this host: processes, mounts, namespaces, interfaces, cgroups, devices, folders.

It works from the bed's record and from what the kernel says, so it needs nothing of the process that made the bed.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from gpulab.sandbox.machines.container import bed as beds
from gpulab.sandbox.machines.container import cgroups
from gpulab.sandbox.machines.container.bed import Bed
from gpulab.sandbox.machines.container.commands import ToolFailed, run_tool

_PATIENCE = 200
_PAUSE_SECONDS = 0.05


class NotClean(Exception):
    """Something of a sandbox could not be removed; the text names it. The next start tries again."""


def reap(bed: Bed, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """
    Remove all of a bed. Harmless when nothing is left.

    Raises:
        NotClean: A process did not end or a mount did not go; the record stays, so that the next start tries again.
    """
    _end_processes(bed, sleep)
    for mount in mounts_under(bed.folder):
        unmount(mount, sleep=sleep)
    with suppress(ToolFailed):
        run_tool("ip", "link", "del", bed.name)
    cgroups.remove(bed.name)
    shutil.rmtree(bed.devices, ignore_errors=True)
    beds.remove_nspawn_traces(f"{bed.name}-*")
    if left := mounts_under(bed.folder):
        raise NotClean(f"still mounted: {', '.join(map(str, left))}")
    shutil.rmtree(bed.folder, ignore_errors=True)
    beds.forget(bed)


def mounts_under(folder: Path) -> list[Path]:
    """The mount points at or below a folder, deepest and latest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(_unescaped(line.split()[4])) for line in lines]
    return [point for point in reversed(points) if point.is_relative_to(folder)]


def unmount(point: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Unmount, which is refused for some milliseconds after the processes that used the place have ended; then lazily."""
    for _ in range(100):
        with suppress(ToolFailed):
            run_tool("umount", point)
            return
        sleep(_PAUSE_SECONDS)
    with suppress(ToolFailed):
        run_tool("umount", "--lazy", point)


def _end_processes(bed: Bed, sleep: Callable[[float], None]) -> None:
    for _ in range(_PATIENCE):
        alive = {pid for pid in cgroups.members(bed.name) if beds.start_time(pid)}
        alive |= set(beds.noted_processes(bed))
        if not alive:
            return
        _kill(alive)
        sleep(_PAUSE_SECONDS)
    raise NotClean(f"these processes do not end: {sorted(alive)}")


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _unescaped(word: str) -> str:
    """`/proc` writes a space as `\\040`."""
    return word.encode().decode("unicode_escape")
