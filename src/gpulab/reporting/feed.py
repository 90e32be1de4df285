"""A spot data feed beside a full statement: both bill the same hours, which must count once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace

from gpulab.model.report import FeedCompared
from gpulab.model.statement import Category, Statement, usd_of

_FEED = "spot-feed"


def without_doubles(
    statements: Collection[Statement],
) -> tuple[tuple[Statement, ...], FeedCompared | None]:
    """
    Leave out of the feeds what a full statement bills too, by instance and UTC day: a feed's hours do not begin on the clock hour.

    Returns:
        The statements that count, and how the two compare where they speak of the same; `None` where they never do.
    """
    feeds = [one for one in statements if one.format == _FEED]
    full = [one for one in statements if one.format != _FEED]
    if not feeds or not full:
        return tuple(statements), None
    wanted = {(line.resource, line.day) for one in feeds for line in one.sums}
    billed: dict[tuple[str, object], int] = defaultdict(int)
    for one in full:
        for line in one.sums:
            key = line.resource, line.day
            if key in wanted and (line.category, line.kind) == (Category.USAGE, "instance"):
                billed[key] += line.units
    both = [line for one in feeds for line in one.sums if (line.resource, line.day) in billed]
    rest = [
        replace(one, sums=tuple(x for x in one.sums if (x.resource, x.day) not in billed))
        for one in feeds
    ]
    if not both:
        return tuple(statements), None
    compared = FeedCompared(
        instance_days=len(billed),
        feed_usd=usd_of(sum(line.units for line in both)),
        statement_usd=usd_of(sum(billed.values())),
    )
    return (*full, *rest), compared
