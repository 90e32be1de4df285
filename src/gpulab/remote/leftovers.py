"""What killed copies have left on this computer: half a copy under a hidden name, which nobody reads again. Refuses what may be in use."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

from gpulab.remote.born import born
from gpulab.remote.instance_side import STAGE_PREFIX

# Long enough for every copy that still goes on, also one of another computer with the same home.
_OLD_S = 24 * 3600
_STAGE = re.compile(re.escape(STAGE_PREFIX) + r"([1-9][0-9]{0,9})-\w+")


def clear(folder: Path, *, now_s: float | None = None) -> None:
    """
    Remove the stages of copies into a folder whose process has gone, and that nobody has written to for a day.

    What cannot be removed stays for the next time; nothing is raised.

    Args:
        now_s: Seconds since 1970; this moment when `None`.
    """
    with contextlib.suppress(OSError):
        for stage in folder.glob(f"{STAGE_PREFIX}*"):
            owner = _STAGE.fullmatch(stage.name)
            if owner is None or born(int(owner[1])) or stage.is_symlink():
                continue
            if (time.time() if now_s is None else now_s) - _written_at(stage) > _OLD_S:
                shutil.rmtree(stage, ignore_errors=True)


def _written_at(folder: Path) -> float:
    """Say when anything in a folder was last written; not by a file's own time, which is that of the original."""
    inside = (
        Path(at, name) for at, folders, files in os.walk(folder) for name in (*folders, *files)
    )
    return max(path.lstat().st_ctime for path in (folder, *inside))
