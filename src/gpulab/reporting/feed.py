"""A spot data feed beside a full statement: both bill the same hours, which must count once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date

from gpulab.model.report import FeedCompared
from gpulab.model.statement import Category, Statement, StatementSum, usd_of

_FEED = "spot-feed"
_Pair = tuple[str, date]


def without_doubles(
    statements: Collection[Statement],
) -> tuple[tuple[Statement, ...], FeedCompared | None]:
    """
    Count what both bill once, by instance and UTC day: a feed's hours do not begin on the clock hour.

    The statement counts. Of a day that no statement has whole, the last one of a bill that goes on, whichever says more of an instance
    does: both only ever lack hours.

    Returns:
        The statements that count, and how the two compare where they speak of the same; `None` where they never do.
    """
    feeds = [one for one in statements if one.format == _FEED]
    full = [one for one in statements if one.format != _FEED]
    fed = _units(line for one in feeds for line in one.sums)
    billed = _units(line for one in full for line in one.sums if _pair(line) in fed)
    if not billed:
        return tuple(statements), None
    open_days = {day for _, day in billed if _is_open(day, full)}
    taken = {pair for pair in billed if pair[1] in open_days and fed[pair] > billed[pair]}
    compared = FeedCompared(
        instance_days=len(billed),
        feed_usd=usd_of(sum(fed[pair] for pair in billed)),
        statement_usd=usd_of(sum(billed.values())),
        from_feed=len(taken),
        open_days=tuple(sorted({day for _, day in taken})),
    )
    return (*_without(full, taken), *_without(feeds, billed.keys() - taken)), compared


def _units(lines: Iterable[StatementSum]) -> Mapping[_Pair, int]:
    """Add up the hours of instances; both bill other things beside them."""
    found: dict[_Pair, int] = defaultdict(int)
    for line in lines:
        if _is_hours(line):
            found[_pair(line)] += line.units
    return found


def _pair(line: StatementSum) -> _Pair:
    return line.resource, line.day


def _is_hours(line: StatementSum) -> bool:
    return (line.category, line.kind) == (Category.USAGE, "instance")


def _is_open(day: date, full: Sequence[Statement]) -> bool:
    """Whether every statement that tells of a day may still get lines of it."""
    telling = [one for one in full if one.days and one.days[0] <= day <= one.days[1]]
    return all(one.whole_until is not None and one.whole_until < day for one in telling)


def _without(statements: Sequence[Statement], pairs: Collection[_Pair]) -> Iterable[Statement]:
    for one in statements:
        kept = tuple(x for x in one.sums if not (_is_hours(x) and _pair(x) in pairs))
        yield replace(one, sums=kept) if len(kept) < len(one.sums) else one
