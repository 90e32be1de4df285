"""
Many people at once in simulated time. Each is a thread that runs until it sleeps; sleeping is waiting for the simulated clock.

One runs at a time, in the order of their moments, so a term repeats with its seed and a night takes no time.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import botocore.endpoint

from gpulab.sandbox.world import World

_STACK_BYTES = 1 << 20


class Ended(BaseException):
    """Whoever sleeps is not to wake: the machine it runs on is off. Nothing but the clockwork catches it."""


class Clockwork:
    """
    Actors in a world whose clock is moved by hand.

    Attributes:
        tracebacks: Of actors that ended in a way nobody foresaw; a sound term has none.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.tracebacks: list[str] = []
        self._waiting: list[tuple[datetime, int, _Actor]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._back = threading.Semaphore(0)
        self._here = threading.local()
        threading.stack_size(_STACK_BYTES)

    def begin(self, at: datetime, work: Callable[[], None]) -> None:
        """Let somebody begin something at a moment; one that has passed is now."""
        self._wait(_Actor(self, work), at)

    def after(self, seconds: float, work: Callable[[], None]) -> None:
        """Let somebody begin something later."""
        self.begin(self.world.now() + timedelta(seconds=seconds), work)

    def sleep(self, seconds: float) -> None:
        """
        Wait so long.

        A thread that an actor has started for itself, such as one of a pool, moves the clock instead: its actor waits for it.
        """
        actor: _Actor | None = getattr(self._here, "actor", None)
        if actor is None:
            self.world.advance(seconds)
            return
        self._wait(actor, self.world.now() + timedelta(seconds=max(0.0, seconds)))
        self._back.release()
        actor.turn.acquire()

    def run(self, until: datetime) -> None:
        """Let everything happen up to a moment."""
        while (moment := self._next()) is not None and moment <= until:
            self._advance(moment)
            while (actor := self._due()) is not None:
                actor.go()
                self._back.acquire()
        self._advance(until)

    @contextmanager
    def botocore_waits_here(self) -> Iterator[None]:
        """Let botocore's pauses between its retries pass in simulated time too."""
        with patch.object(botocore.endpoint, "time", self.as_time()):
            yield

    def as_time(self) -> Any:
        """Return what a program takes for the module `time`."""

        def seconds() -> float:
            return self.world.now().timestamp()

        return SimpleNamespace(
            time=seconds,
            monotonic=seconds,
            time_ns=lambda: int(seconds() * 1e9),
            sleep=self.sleep,
        )

    def _wait(self, actor: _Actor, at: datetime) -> None:
        with self._lock:
            heapq.heappush(self._waiting, (at, next(self._numbers), actor))

    def _next(self) -> datetime | None:
        with self._lock:
            moments = [self._waiting[0][0]] if self._waiting else []
        due = self.world.due_at
        return min([*moments, *([due] if due else [])], default=None)

    def _due(self) -> _Actor | None:
        with self._lock:
            if self._waiting and self._waiting[0][0] <= self.world.now():
                return heapq.heappop(self._waiting)[2]
        return None

    def _advance(self, moment: datetime) -> None:
        self.world.advance(max(0.0, (moment - self.world.now()).total_seconds()))

    def _be(self, actor: _Actor, work: Callable[[], None]) -> None:
        self._here.actor = actor
        try:
            work()
        except Ended:
            pass
        except BaseException:
            self.tracebacks.append(traceback.format_exc())
        finally:
            self._back.release()


class _Actor:
    """One thread, which runs when it is its turn."""

    def __init__(self, clockwork: Clockwork, work: Callable[[], None]) -> None:
        self.turn = threading.Semaphore(0)
        self._start: Callable[[], None] | None = lambda: threading.Thread(
            target=clockwork._be, args=(self, work), daemon=True
        ).start()

    def go(self) -> None:
        start, self._start = self._start, None
        if start is not None:
            start()
        else:
            self.turn.release()
