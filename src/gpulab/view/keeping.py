"""Kept work as a list."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from gpulab.launch.running.keep import KeptWork
from gpulab.view.console import table
from gpulab.view.copies import size
from gpulab.view.words import local_time


def kept_text(kept: Sequence[KeptWork], *, now: datetime) -> str:
    """Say what is kept, how much, and where."""
    if not kept:
        return "No work is kept"
    rows = [
        [
            work.name,
            str(work.files),
            size(work.bytes),
            local_time(work.saved_at, now=now) if work.saved_at else "?",
            work.where,
        ]
        for work in kept
    ]
    return table(rows, ["KEPT WORK", "FILES", "SIZE", "SAVED", "WHERE"], right=[1, 2])
