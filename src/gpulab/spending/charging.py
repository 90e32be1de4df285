"""
What a timeline cost, by AWS's rules. Hides minimums, instance-hours, month ends and the first-hour gift.

Sources:
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/billing-for-interrupted-spot-instances.html
    https://aws.amazon.com/ec2/faqs/ (per-second billing, the price of an instance-hour)
    https://docs.aws.amazon.com/ebs/latest/userguide/ebs-volume-types.html (GB-months)
    https://aws.amazon.com/blogs/aws/new-aws-public-ipv4-address-charge-public-ip-insights/
"""

from __future__ import annotations

import calendar
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from itertools import groupby, pairwise

from gpulab.model.market import Market
from gpulab.model.timeline import (
    AddressLife,
    Charge,
    ChargeKind,
    Costs,
    EndedBy,
    InstanceLife,
    PriceRule,
    Run,
    Timeline,
    Unpriced,
    VolumeLife,
)
from gpulab.spending.exact import EXACT, seconds_between

MINIMUM_SECONDS = 60
HOUR_SECONDS = 3600

# Addresses cost nothing before this moment.
IPV4_CHARGED_FROM = datetime(2024, 2, 1, tzinfo=UTC)


def cost_of(
    timeline: Timeline, *, as_of: datetime, price_rule: PriceRule = PriceRule.HOUR_START
) -> Costs:
    """
    Charge everything in a timeline.

    Args:
        as_of: Open runs, volumes and addresses are billed up to here; what begins later is not billed yet.

    Returns:
        Exact charges. What has no known price is listed, never taken for free.
    """
    charges: list[Charge] = []
    unpriced: list[Unpriced] = []
    billed_s = 0
    for life in timeline.instances:
        for run in life.runs:
            billed_s += billed_seconds(run, life.market, as_of=as_of)
            _sort_in(_instance_items(life, run, as_of, price_rule), charges, unpriced)
            _sort_in(_automatic_address_items(life, run, as_of), charges, unpriced)
    for volume in timeline.volumes:
        _sort_in(_volume_items(volume, as_of), charges, unpriced)
    for address in timeline.addresses:
        _sort_in(_address_items(address, as_of), charges, unpriced)
    return Costs(price_rule, tuple(charges), tuple(unpriced), billed_s, _owners(timeline))


def billed_seconds(run: Run, market: Market, *, as_of: datetime) -> int:
    """Count the seconds a run is charged for: at least 60, none for a gift or a run that is yet to begin."""
    end = as_of if run.ends_at is None else run.ends_at
    if end < run.begins_at or is_free(run, market):
        return 0
    return max(MINIMUM_SECONDS, seconds_between(run.begins_at, end))


def is_free(run: Run, market: Market) -> bool:
    """Whether AWS ended a spot run before its first hour was full; an open run cannot be, yet."""
    return (
        market is Market.SPOT
        and run.ended_by is EndedBy.AWS
        and run.ends_at is not None
        and seconds_between(run.begins_at, run.ends_at) < HOUR_SECONDS
    )


def _sort_in(
    items: Iterable[Charge | Unpriced], charges: list[Charge], unpriced: list[Unpriced]
) -> None:
    for item in items:
        if isinstance(item, Unpriced):
            unpriced.append(item)
        else:
            charges.append(item)


def _owners(timeline: Timeline) -> tuple[str, ...]:
    named = {life.owner for life in timeline.instances}
    named |= {volume.owner for volume in timeline.volumes}
    named |= {address.owner for address in timeline.addresses}
    return tuple(sorted(owner for owner in named if owner is not None))


def _instance_items(
    life: InstanceLife, run: Run, as_of: datetime, rule: PriceRule
) -> Iterator[Charge | Unpriced]:
    billed_s = billed_seconds(run, life.market, as_of=as_of)
    if not billed_s:
        return
    end = as_of if run.ends_at is None else run.ends_at
    starts = _price_starts(life, run.begins_at, end, rule)
    if len(starts) == 1:  # no price moved, as in most runs
        usd = life.prices.in_force(run.begins_at)
        yield _instance_item(life, run.begins_at, billed_s, usd)
        return
    pieces = _padded(_pieces(starts, end), billed_s)
    priced = [(life.prices.in_force(begin), begin, seconds) for begin, seconds in pieces]
    for usd, neighbours in groupby(priced, key=lambda piece: piece[0]):
        same = list(neighbours)
        yield _instance_item(life, same[0][1], sum(seconds for _, _, seconds in same), usd)


def _price_starts(
    life: InstanceLife, begin: datetime, end: datetime, rule: PriceRule
) -> list[datetime]:
    """List the moments from which the price may differ; the first is the run's begin."""
    if life.market is Market.ON_DEMAND:
        return [begin]
    points = life.prices.at
    changes = points[bisect_right(points, begin) : bisect_left(points, end)]
    if not changes:
        return [begin]
    if rule is PriceRule.HOUR_START:
        hours = sorted({_hour_from(begin, change) for change in changes})
        return [begin, *(hour for hour in hours if hour < end)]
    return [begin, *changes]


def _hour_from(begin: datetime, moment: datetime) -> datetime:
    """Return the first begin of an instance-hour at or after a moment; hours count from the run's begin."""
    hours = -(-seconds_between(begin, moment) // HOUR_SECONDS)
    return begin + timedelta(seconds=hours * HOUR_SECONDS)


def _pieces(starts: list[datetime], end: datetime) -> list[tuple[datetime, int]]:
    """Cut a span at its starts, into begins and seconds; the last piece may have none."""
    return [(a, seconds_between(a, b)) for a, b in pairwise([*starts, end])]


def _padded(pieces: list[tuple[datetime, int]], billed_s: int) -> list[tuple[datetime, int]]:
    """Lengthen the last piece to the minimum: the padding costs what the last second cost."""
    begin, seconds = pieces[-1]
    missing_s = billed_s - sum(s for _, s in pieces)
    return [*pieces[:-1], (begin, seconds + missing_s)]


def _instance_item(
    life: InstanceLife, begin: datetime, seconds: int, usd: Decimal | None
) -> Charge | Unpriced:
    if usd is not None:
        return Charge(ChargeKind.INSTANCE, life.id, life.owner, begin, seconds, usd, HOUR_SECONDS)
    what = f"the on-demand price of {life.instance_type}"
    if life.market is Market.SPOT:
        what = (
            f"the spot price of {life.instance_type} in {life.zone} at {begin:%Y-%m-%dT%H:%M:%SZ}"
        )
    return Unpriced(ChargeKind.INSTANCE, life.id, life.owner, what)


def _automatic_address_items(
    life: InstanceLife, run: Run, as_of: datetime
) -> Iterator[Charge | Unpriced]:
    if life.has_public_ipv4:
        address = AddressLife(
            life.id, life.owner, life.ipv4_usd_per_hour, run.begins_at, run.ends_at
        )
        yield from _address_items(address, as_of)


def _address_items(address: AddressLife, as_of: datetime) -> Iterator[Charge | Unpriced]:
    """Charge an address from 2024-02-01 on; it has no minimum."""
    begin = max(address.allocated_at, IPV4_CHARGED_FROM)
    seconds = seconds_between(begin, address.released_at or as_of)
    if seconds <= 0:
        return
    if address.usd_per_hour is None:
        what = "the price of a public IPv4 address"
        yield Unpriced(ChargeKind.IPV4, address.id, address.owner, what)
    else:
        yield Charge(
            ChargeKind.IPV4,
            address.id,
            address.owner,
            begin,
            seconds,
            address.usd_per_hour,
            HOUR_SECONDS,
        )


def _volume_items(volume: VolumeLife, as_of: datetime) -> Iterator[Charge | Unpriced]:
    end = volume.deleted_at or as_of
    if end < volume.created_at:
        return
    if volume.usd_per_gb_month is None:
        what = f"the price of a GB-month of {volume.type}"
        yield Unpriced(ChargeKind.EBS, volume.id, volume.owner, what)
        return
    usd_per_month = EXACT.multiply(volume.usd_per_gb_month, volume.size_gb)
    pieces = _pieces([volume.created_at, *_month_starts(volume.created_at, end)], end)
    lived_s = seconds_between(volume.created_at, end)
    for begin, seconds in _padded(pieces, max(MINIMUM_SECONDS, lived_s)):
        yield Charge(
            ChargeKind.EBS,
            volume.id,
            volume.owner,
            begin,
            seconds,
            usd_per_month,
            _month_seconds(begin),
        )


def _month_starts(begin: datetime, end: datetime) -> Iterator[datetime]:
    """Yield the UTC month starts strictly between two moments."""
    moment = _next_month(begin)
    while moment < end:
        yield moment
        moment = _next_month(moment)


def _next_month(moment: datetime) -> datetime:
    years, month = divmod(moment.month, 12)
    return datetime(moment.year + years, month + 1, 1, tzinfo=UTC)


def _month_seconds(moment: datetime) -> int:
    return _seconds_of_month(moment.year, moment.month)


@cache
def _seconds_of_month(year: int, month: int) -> int:
    return 86400 * calendar.monthrange(year, month)[1]
