"""Charges cut at moments, for reports by day, week and lab. Hides partial seconds; sums over any cut are unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from gpulab.model.timeline import Charge
from gpulab.spending.exact import seconds_between


def within(charges: Iterable[Charge], begin: datetime, end: datetime) -> Iterator[Charge]:
    """Yield the parts of charges that accrue from `begin` up to `end`; both whole seconds in UTC."""
    for charge in charges:
        first = max(charge.begins_at, begin)
        last = min(charge.begins_at + timedelta(seconds=charge.seconds), end)
        if first < last:
            yield replace(charge, begins_at=first, seconds=seconds_between(first, last))
