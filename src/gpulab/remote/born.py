"""When a process began. Hides how each system says so; a process id is given again to another process, this is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def born(pid: int) -> str:
    """Say when a process began, in the system's own words; empty when there is none."""
    if sys.platform == "win32":
        return _born_on_windows(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "" if Path("/proc/self/stat").exists() else _born_by_ps(pid)
    # The name in parentheses may hold anything; state is the first field after it, the start time the 20th.
    after = fields.rpartition(")")[2].split()
    return "" if after[0] in "ZX" else after[19]


def _born_by_ps(pid: int) -> str:
    shown = subprocess.run(
        ["ps", "-o", "lstart=,state=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    began, _, state = shown.stdout.strip().rpartition(" ")
    return "" if state.startswith("Z") else began.strip()


def _born_on_windows(pid: int) -> str:
    import ctypes

    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined,unused-ignore]
    handle = kernel.OpenProcess(0x1000, False, pid)  # noqa: FBT003  PROCESS_QUERY_LIMITED_INFORMATION
    if not handle:
        return ""
    try:
        times = [ctypes.c_ulonglong() for _ in range(4)]
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        if code.value != 259:  # STILL_ACTIVE
            return ""
        kernel.GetProcessTimes(handle, *(ctypes.byref(t) for t in times))
        return str(times[0].value)
    finally:
        kernel.CloseHandle(handle)
