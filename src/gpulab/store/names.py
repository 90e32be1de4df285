"""The names a shell may complete, in a small local file. Hides that file; an unreadable one is no names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from gpulab.errors import StoreError
from gpulab.store.files import write_atomically


def known_names(cache: Path) -> tuple[str, ...]:
    """Return the names last seen, sorted; empty when none were."""
    try:
        return tuple(sorted(set((cache / "names").read_text(encoding="utf-8").split())))
    except (OSError, UnicodeDecodeError):
        return ()


def remember_names(cache: Path, names: Iterable[str]) -> None:
    """Replace the names; a full disk costs completion, nothing else."""
    with contextlib.suppress(StoreError):
        write_atomically(cache / "names", "\n".join(sorted(set(names))).encode())
