"""What runs now per hour, and when a balance ends at that pace. Hides months; refuses to forecast what is not known."""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from gpulab.model.timeline import Timeline
from gpulab.spending.charging import cost_of
from gpulab.spending.exact import Usd
from gpulab.spending.facts import LedgerReading
from gpulab.spending.windows import within

# us-east-1, November 2026: https://aws.amazon.com/ebs/pricing/ and https://aws.amazon.com/vpc/pricing/
GP3_USD = Decimal("0.08")
IPV4_USD = Decimal("0.005")

_FAR = timedelta(days=3650)


@dataclass(frozen=True)
class Burn:
    """
    What flows now, USD per hour.

    Attributes:
        instances: Number of running instances.
        volumes: Number of existing volumes; they cost without an instance too.
        is_complete: False when a price is not known; the sum is then a lower bound.
    """

    usd_per_hour: Decimal
    instances: int
    volumes: int
    is_complete: bool = True


def burn_of(timeline: Timeline, *, now: datetime) -> Burn:
    """Add up what everything that is open costs per hour at the prices in force now."""
    running = [i for i in timeline.instances if i.runs and i.runs[-1].ends_at is None]
    volumes = [v for v in timeline.volumes if v.deleted_at is None]
    addresses = [a for a in timeline.addresses if a.released_at is None]
    hours = calendar.monthrange(now.year, now.month)[1] * 24
    rates: list[Decimal | None] = [life.prices.in_force(now) for life in running]
    rates += [life.ipv4_usd_per_hour for life in running if life.has_public_ipv4]
    rates += [address.usd_per_hour for address in addresses]
    rates += [
        None if v.usd_per_gb_month is None else v.usd_per_gb_month * v.size_gb / hours
        for v in volumes
    ]
    known = [rate for rate in rates if rate is not None]
    return Burn(sum(known, Decimal(0)), len(running), len(volumes), len(known) == len(rates))


def spent_between(timeline: Timeline, begin: datetime | None, end: datetime) -> Decimal:
    """Add up what accrued in a span (`None`: from the beginning), to ten decimals, half up."""
    charges = cost_of(timeline, as_of=end).charges
    first = min((c.begins_at for c in charges), default=end) if begin is None else begin
    return Usd.of(
        within(charges, first.replace(microsecond=0), end.replace(microsecond=0))
    ).rounded()


def lasts_until(left_usd: Decimal, usd_per_hour: Decimal, *, now: datetime) -> datetime | None:
    """Say when a balance ends at a pace; `None` when nothing flows or it lasts ten years and more."""
    if usd_per_hour <= 0:
        return None
    seconds = left_usd / usd_per_hour * 3600
    if seconds > int(_FAR.total_seconds()):
        return None
    return now + timedelta(seconds=int(seconds))


@dataclass(frozen=True)
class PlannedLab:
    """
    What a planned lab costs.

    Attributes:
        usd_per_hour: The instance alone.
        at_most_usd: Instance, disk and public address for all its hours.
    """

    hours: Decimal
    usd_per_hour: Decimal
    at_most_usd: Decimal


def planned_lab(
    hours: Decimal, *, usd_per_hour: Decimal, disk_gb: int, usd_per_gb_month: Decimal = GP3_USD
) -> PlannedLab:
    """Price a lab; a month is taken as 28 days, so the disk is never dearer than said."""
    disk = usd_per_gb_month * disk_gb / (28 * 24)
    return PlannedLab(hours, usd_per_hour, hours * (usd_per_hour + disk + IPV4_USD))


def last_price(reading: LedgerReading) -> Decimal | None:
    """Return the price per hour of the newest launch; `None` before the first."""
    newest = max(reading.launches.values(), key=lambda launch: launch.launched_at, default=None)
    if newest is None:
        return None
    life = next(i for i in reading.timeline.instances if i.id == newest.instance_id)
    return life.prices.in_force(newest.launched_at)
