"""
The process that outlives a sandbox by a moment: it reaps when its sandbox was killed.

It waits on its standard input, which the sandbox holds open and the kernel closes however the sandbox ends. If the supervisor is
killed too, the next sandbox reaps when it starts.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

from gpulab.sandbox.machines.container import bed as beds
from gpulab.sandbox.machines.container.reaper import reap

_DONE = b"done"
_PATIENCE = 300
_PAUSE_SECONDS = 0.1


def supervise(number: int) -> subprocess.Popen[bytes]:
    """Start the supervisor of a bed; it reaps when this process dies without having called `dismiss`."""
    words = [sys.executable, "-c", f"import {__name__} as s; s.main({number})"]
    return subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)


def dismiss(supervisor: subprocess.Popen[bytes]) -> None:
    """Let a supervisor go: its bed has been reaped."""
    with contextlib.suppress(BrokenPipeError):  # it was killed before
        supervisor.communicate(_DONE)


def main(number: int) -> None:
    """Wait for the sandbox's end, then reap what it has not cleaned up itself."""
    bed = beds.recorded(number)
    if bed is None or sys.stdin.buffer.read() == _DONE:
        return
    # The kernel closes a dead process's files one after the other: the lock may be freed after our pipe has closed.
    for _ in range(_PATIENCE):
        with contextlib.suppress(beds.BedTaken), beds.hold(number):
            if beds.recorded(number) == bed:
                reap(bed)
            return
        time.sleep(_PAUSE_SECONDS)
