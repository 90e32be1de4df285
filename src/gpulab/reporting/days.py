"""Local days. Hides time zones: a day's first moment is found once, then moments are looked up and not converted."""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, date, datetime, time, timedelta, tzinfo


class LocalDays:
    """
    The days of a span in a time zone.

    Args:
        begin, end: No moment outside them is asked for; aware UTC.
    """

    def __init__(self, begin: datetime, end: datetime, zone: tzinfo) -> None:
        first = begin.astimezone(zone).date()
        count = max(0, (end.astimezone(zone).date() - first).days) + 1
        self._days = [first + timedelta(days=n) for n in range(count)]
        self._begins = [datetime.combine(day, time(), zone).astimezone(UTC) for day in self._days]

    def of(self, moment: datetime) -> date:
        """Return the day of a moment."""
        return self._days[bisect_right(self._begins, moment) - 1]

    def cut(self, begin: datetime, end: datetime) -> list[tuple[date, datetime, datetime]]:
        """Cut a span at midnights, into days, begins and ends; an empty span has no parts."""
        if begin >= end:
            return []
        n, last = bisect_right(self._begins, begin) - 1, bisect_right(self._begins, end) - 1
        if n == last:
            return [(self._days[n], begin, end)]
        parts = []
        while begin < end:
            until = min(end, self._begins[n + 1]) if n < last else end
            parts.append((self._days[n], begin, until))
            begin, n = until, n + 1
        return parts
