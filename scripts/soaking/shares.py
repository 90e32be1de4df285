"""
A term in shares: so many students at a time, each share in a process and a simulated AWS of its own, with one weather for all.

What came of a share is kept, so that a term can be played in several sittings.
"""

from __future__ import annotations

import gc
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import reduce
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from gpulab.sandbox.witnesses import keep_in
from soaking import term
from soaking.figures import Figures
from soaking.machines import Tally

# Everything is synced to the disk as on a laptop; in memory that costs nothing.
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
_ONCE = frozenset({"outages", "most_apart"})

Part = tuple[Figures, Tally]
_T = TypeVar("_T", Figures, Tally)


def play(
    size: term.Size,
    *,
    seed: int,
    each: int,
    processes: int,
    minutes: float,
    kept: Path,
    say: Callable[[str], None],
) -> Iterator[tuple[int, Part]]:
    """
    Play a term, and yield after each share that ended how many students have lived through it, and what came of all of them.

    Args:
        each: Students in a share; a simulated AWS becomes slower with all it remembers.
        processes: Shares at once.
        minutes: No share begins later.
        kept: Where finished shares lie, and are taken from: of the same size, seed and commit.
    """
    kept.mkdir(parents=True, exist_ok=True)
    begun, parts, students = time.monotonic(), [], 0
    with ProcessPoolExecutor(processes, get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = []
        for share in _shares(size, each):
            file = _file(kept, share)
            if file.exists():
                parts.append(pickle.loads(file.read_bytes()))  # noqa: S301 - we wrote it
                students += share.students
            else:
                waiting.append(share)
        if parts:
            yield students, joined(parts)
        running: dict[Future[Part], term.Size] = {}
        while waiting or running:
            if time.monotonic() - begun > minutes * 60:
                waiting.clear()
            while waiting and len(running) < processes:
                share = waiting.pop(0)
                running[pool.submit(_share, share, seed)] = share
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                share = running.pop(ended)
                parts.append(ended.result())
                _file(kept, share).write_bytes(pickle.dumps(ended.result()))
                students += share.students
                say(f"{students} of {size.students} students have lived through the term")
                yield students, joined(parts)


def joined(parts: Sequence[Part]) -> Part:
    """Make one of what came of several shares; the weather was the same for all."""
    figures = reduce(_added, (found for found, _ in parts))
    apart = max((found.most_apart for found, _ in parts), key=lambda one: one[1])
    whole = replace(figures, most_apart=apart)
    return whole, reduce(_added, (tally for _, tally in parts))


def _file(kept: Path, share: term.Size) -> Path:
    return kept / f"{share.first}-{share.students}.pickle"


def _shares(size: term.Size, each: int) -> Iterable[term.Size]:
    for first in range(size.first, size.first + size.students, each):
        count = min(each, size.first + size.students - first)
        yield replace(size, students=count, first=first)


def _share(size: term.Size, seed: int) -> Part:
    def say(text: str) -> None:
        print(f"students {size.first} to {size.first + size.students - 1}, {text}", flush=True)

    keep_in(os.environ)
    within = _IN_MEMORY if _IN_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="gpulab-soak-", dir=within) as folder:
        _collect_seldom()
        try:
            return term.play(size, seed=seed, folder=Path(folder), say=say)
        except Exception:  # a share that breaks off is a promise broken, and the others go on
            figures = Figures(tracebacks=[traceback.format_exc()])
            figures.sample(datetime.now(UTC), 0)
            return figures, Tally()


def _collect_seldom() -> None:
    """A simulated AWS holds a million objects, and looking through them again and again took a fifth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def _added(one: _T, other: _T) -> _T:
    sums = {
        field.name: _sum(getattr(one, field.name), getattr(other, field.name))
        for field in fields(one)
        if field.name not in _ONCE
    }
    return replace(one, **sums)


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return type(one)({key: one.get(key, 0) + other.get(key, 0) for key in one | other})
    return one + other
