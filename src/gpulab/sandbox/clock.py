"""Time in the simulated world: a clock the test moves or one that runs, and the agenda of what is due when."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

#: Where a manual clock begins when nobody says: a Monday morning.
DEFAULT_START = datetime(2026, 11, 16, 9, 0, 0, tzinfo=UTC)


class Clock(Protocol):
    """What the world asks of a clock."""

    def now(self) -> datetime:
        """The simulated moment; aware UTC, never runs backwards."""

    def move_to(self, moment: datetime) -> None:
        """Jump forward; a moment that has passed is ignored."""


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, start: datetime = DEFAULT_START) -> None:
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        """The simulated moment."""
        return self._now

    def move_to(self, moment: datetime) -> None:
        """Jump forward."""
        self._now = max(self._now, moment)


class RunningClock:
    """
    A clock that runs, `speed` simulated seconds for each real one.

    Args:
        start: The simulated moment at which it begins; now when not given.
        monotonic: Seconds that never run backwards; for tests.
    """

    def __init__(
        self,
        *,
        speed: float = 1.0,
        start: datetime | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.speed = speed
        self._monotonic = monotonic
        self._start = (start or datetime.now(UTC)).astimezone(UTC)
        self._began = monotonic()

    def now(self) -> datetime:
        """The simulated moment."""
        return self._start + timedelta(seconds=(self._monotonic() - self._began) * self.speed)

    def move_to(self, moment: datetime) -> None:
        """Jump forward and go on from there."""
        if moment > self.now():
            self._start, self._began = moment, self._monotonic()


class Agenda:
    """What is to happen, in order of time; equal times in the order they were entered."""

    def __init__(self) -> None:
        self._entries: list[tuple[datetime, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, moment: datetime, action: Callable[[], None]) -> None:
        """Enter an action; it checks by itself whether it still applies when its time has come."""
        heapq.heappush(self._entries, (moment, next(self._numbers), action))

    def next_at(self) -> datetime | None:
        """When the next action is due, or `None` when nothing is planned."""
        return self._entries[0][0] if self._entries else None

    def pop_due(self, now: datetime) -> Callable[[], None] | None:
        """Take the next action that is due, or `None`."""
        if self._entries and self._entries[0][0] <= now:
            return heapq.heappop(self._entries)[2]
        return None
