"""The cgroups of a bed: who belongs to it, and a way to start a process in them; knows both layouts, v2 and hybrid v1."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")

# Of a v1 host, the hierarchies that need no further settings; `unified` is the v2 tree beside them.
_HIERARCHIES = ("unified", "systemd", "memory", "cpu", "pids")

# Writes its own id into each file up to `--`, then becomes the rest: the process never runs outside its groups.
_ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 125; shift; done; shift; exec "$@"'


def enter(prefix: str, name: str, argv: list[str], *, root: Path = ROOT) -> list[str]:
    """Make the groups of one member of a bed, and return the words that start a process in them."""
    folders = [top / prefix / name for top in _tops(root)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        _delegate(folder.parent)
    return [
        "sh",
        "-c",
        _ENTER,
        "sh",
        *(f"{folder}/cgroup.procs" for folder in folders),
        "--",
        *argv,
    ]


def members(prefix: str, name: str = "", *, root: Path = ROOT) -> set[int]:
    """The ids of every process in a bed's groups, or in those of one member."""
    found: set[int] = set()
    for folder in (folder for top in _tops(root) for folder in _folders(top / prefix / name)):
        with suppress(OSError):
            found |= {int(word) for word in (folder / "cgroup.procs").read_text().split()}
    return found


def end(prefix: str, name: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """End every process of one member, and wait for a moment until they are gone."""
    for _ in range(100):
        alive = members(prefix, name)
        if not alive:
            return
        for pid in alive:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        sleep(0.05)


def remove(prefix: str, name: str = "", *, root: Path = ROOT) -> None:
    """Remove empty groups; one that still has a process stays."""
    for top in _tops(root):
        for folder in reversed(_folders(top / prefix / name)):
            with suppress(OSError):
                folder.rmdir()


def limit_memory(prefix: str, name: str, mib: int, *, root: Path = ROOT) -> None:
    """Let the kernel end processes of a member that needs more than `mib` MiB in all."""
    for top in _tops(root):
        for file in ("memory.max", "memory.limit_in_bytes"):
            with suppress(FileNotFoundError, PermissionError):
                if (top / prefix / name / file).exists():
                    (top / prefix / name / file).write_text(str(mib * 1024 * 1024))


def _delegate(folder: Path) -> None:
    """On v2 a group's limits exist only where its parent hands the controller down."""
    for controller in ("+memory", "+pids"):
        with suppress(OSError):
            (folder / "cgroup.subtree_control").write_text(controller)


def _tops(root: Path) -> list[Path]:
    if (root / "cgroup.controllers").exists():
        return [root]
    return [root / name for name in _HIERARCHIES if (root / name).is_dir()]


def _folders(folder: Path) -> list[Path]:
    """A folder and all below it, deepest last; groups that go while we look are passed over, as a glob would not."""
    return [Path(place) for place, _, _ in os.walk(folder)]
