"""
What machines of kind `process` leave behind, and its end: their processes now, their folders in the background.

An environment has ten thousand files: nobody waits for their deletion, but nobody finds them in their place any more either.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from gpulab.sandbox.machines.process import trees
from gpulab.sandbox.machines.process.disk import MARK

# Folders may have been made read-only inside; deleting needs the right to write in them.
_DELETE = '(chmod -R u+rwX -- "$1"; exec nice rm -rf -- "$1") </dev/null >/dev/null 2>&1 &'


def reap(folder: Path) -> tuple[str, ...]:
    """
    End whatever an earlier sandbox left behind in this folder, and remove its disks and volumes.

    Returns:
        The instance ids that were found, sorted.
    """
    machines, trash = folder / "machines", folder / "trash"
    found = _entries(machines)
    for machine in found:
        _kill_recorded(machine / "machine.json")
    prefix = str(machines) + os.sep
    trees.kill_until_gone(lambda: trees.marked(MARK, lambda value: value.startswith(prefix)))
    for doomed in _entries(trash):  # what an earlier deletion did not finish
        _delete(doomed)
    for left in (*found, *_entries(folder / "volumes")):
        remove(left, trash=trash)
    return tuple(machine.name for machine in found)


def remove(folder: Path, *, trash: Path) -> None:
    """Take a folder out of its place, and delete it in the background; a missing one is no error."""
    trash.mkdir(mode=0o700, parents=True, exist_ok=True)
    doomed = Path(tempfile.mkdtemp(dir=trash))
    try:
        folder.rename(doomed / folder.name)
    except FileNotFoundError:
        doomed.rmdir()
    else:
        _delete(doomed)


def _delete(doomed: Path) -> None:
    subprocess.run(
        ["/bin/sh", "-c", _DELETE, "sh", str(doomed)], check=False, start_new_session=True
    )


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _kill_recorded(record: Path) -> None:
    """Kill a machine's tree from its record, if the number still means the process that was recorded."""
    try:
        found = json.loads(record.read_text(encoding="ascii"))
        pid, started = int(found["pid"]), str(found["started"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    if trees.is_running(pid, started):
        trees.kill_until_gone(lambda: trees.descendants(pid))
        trees.kill_until_gone(lambda: {pid} if trees.is_running(pid, started) else ())
