"""What a process holds: memory and open files, as Linux says it."""

from __future__ import annotations

import os
from pathlib import Path


def memory_mb() -> int:
    """Resident memory of this process; 0 where `/proc` is missing."""
    return memory_of(os.getpid())


def memory_of(pid: int, *, unit_bytes: int = 1 << 20) -> int:
    """Resident memory of a process, MB."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.split("VmRSS:")[1].split()[0]) * 1024 // unit_bytes


def open_files() -> int:
    """Open files of this process; 0 where `/proc` is missing."""
    try:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counting, not reading
    except OSError:
        return 0
