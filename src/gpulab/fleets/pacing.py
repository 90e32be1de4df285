"""
Our own token buckets, a little smaller than AWS's, so that a class never meets `RequestLimitExceeded`.

One bucket for each kind of call, account and region. Thread-safe: callers queue up, each for its own turn.

Source:
    https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html (November 2026): RunInstances 5 at once, then 2 a second
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Rate:
    """
    How many calls at once, and how many a second after that.

    Attributes:
        at_once: What a bucket that was left alone holds.
    """

    at_once: int
    per_second: float


# AWS: 5, then 2 a second. Two and a fortieth less, since calls that are sent evenly do not arrive evenly.
LAUNCH = Rate(3, 1.95)
# AWS: 100, then 20 a second.
LOOK = Rate(5, 5.0)


class Bucket:
    """
    One bucket; full at first.

    Args:
        now: The clock.
        sleep: Waits, in seconds.
    """

    def __init__(
        self, rate: Rate, *, now: Callable[[], datetime], sleep: Callable[[float], None]
    ) -> None:
        self._rate = rate
        self._now = now
        self._sleep = sleep
        self._lock = threading.Lock()
        self._tokens = float(rate.at_once)
        self._at = now()

    def take(self) -> None:
        """Wait until it is this caller's turn; turns are given in the order of asking."""
        wait = self._reserve()
        if wait > 0:
            self._sleep(wait)

    def empty(self) -> None:
        """Take everything out: AWS has just said that its own bucket is empty."""
        with self._lock:
            self._refill()
            self._tokens = min(self._tokens, 0.0)

    def _reserve(self) -> float:
        with self._lock:
            self._refill()
            self._tokens -= 1
            return max(0.0, -self._tokens / self._rate.per_second)

    def _refill(self) -> None:
        now = self._now()
        gained = max(0.0, (now - self._at).total_seconds()) * self._rate.per_second
        self._tokens = min(float(self._rate.at_once), self._tokens + gained)
        self._at = max(now, self._at)


class Pace:
    """The buckets of one account, by region."""

    def __init__(self, *, now: Callable[[], datetime], sleep: Callable[[float], None]) -> None:
        self._now = now
        self._sleep = sleep
        self._buckets: dict[tuple[str, Rate], Bucket] = {}
        self._lock = threading.Lock()

    def bucket(self, region: str, rate: Rate) -> Bucket:
        """Return the bucket of one kind of call in a region."""
        with self._lock:
            key = (region, rate)
            if key not in self._buckets:
                self._buckets[key] = Bucket(rate, now=self._now, sleep=self._sleep)
            return self._buckets[key]
