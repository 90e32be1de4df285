"""
The process that outlives a sandbox by a moment: it reaps when its sandbox was killed.

It waits on its standard input, which the sandbox holds open and the kernel closes however the sandbox ends. If the supervisor is
killed too, the next sandbox reaps when it starts.
"""

from __future__ import annotations

import subprocess
import sys

from gpulab.sandbox.machines.container import bed as beds
from gpulab.sandbox.machines.container.reaper import reap


def supervise(number: int) -> subprocess.Popen[bytes]:
    """Start the supervisor of a bed; it acts when the returned process's `stdin` is closed, by us or by our death."""
    words = [sys.executable, "-c", f"import {__name__} as s; s.main({number})"]
    return subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)


def main(number: int) -> None:
    """Wait for the sandbox's end, then reap what it has not cleaned up itself."""
    while sys.stdin.buffer.read(4096):
        pass
    try:
        lock = beds.hold(number)
    except beds.BedTaken:  # it is closing in order, or a new sandbox has reaped and taken over
        return
    with lock:
        left = beds.recorded(number)
        if left is not None:
            reap(left)
