"""Readers that want a path get a file of their own, in memory where the system has such a folder."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

_MEMORY = Path("/dev/shm")
# Set by scripts/fuzz.py, since libFuzzer ends a process before Python's own clearing up.
_LENT = "GPULAB_FUZZ_FILES"


@cache
def folder() -> Path:
    """Return this process's folder; it goes when the process ends, or with the fuzzer's run that lends it."""
    is_usable = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)
    where = os.environ.get(_LENT) or (_MEMORY if is_usable else None)
    made = Path(tempfile.mkdtemp(prefix="gpulab-fuzz-", dir=where))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def from_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Make a reader of bytes of a reader of files; the file is the reader's alone."""

    def one(given: bytes) -> object:
        path = folder() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(given)
        return read(path)

    return one


def emptied(name: str) -> Path:
    """Return a folder that is there and empty."""
    path = folder() / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
