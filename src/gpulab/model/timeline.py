"""What was running, from when to when, at which prices; and what it cost. Values only."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from gpulab.model.market import Market


class EndedBy(StrEnum):
    """Who ended a run: it decides whether a short spot run is free."""

    USER = "user"
    AWS = "aws"


class PriceRule(StrEnum):
    """
    The two readings of AWS's text on spot prices that move during a run.

    Source:
        EC2 FAQ (the price at the beginning of an instance-hour) against the whitepaper page how-spot-instances-work.
    """

    HOUR_START = "hour-start"
    PER_SECOND = "per-second"


class ChargeKind(StrEnum):
    """What is paid for."""

    INSTANCE = "instance"
    EBS = "ebs"
    IPV4 = "ipv4"


@dataclass(frozen=True, slots=True)
class PriceSeries:
    """
    The price of one thing over time; a price holds until the next point.

    Attributes:
        at: Moments, ascending, unique; aware UTC.
        usd: The price from each moment on; as long as `at`.
    """

    at: tuple[datetime, ...]
    usd: tuple[Decimal, ...]

    def in_force(self, moment: datetime) -> Decimal | None:
        """Return the last price at or before a moment; `None` when there is none."""
        n = bisect_right(self.at, moment)
        return self.usd[n - 1] if n else None


NO_PRICES = PriceSeries((), ())


@dataclass(frozen=True, slots=True)
class Run:
    """
    One run of an instance, from a start to a stop or an end.

    Attributes:
        begins_at: When the state became running; whole second, aware UTC.
        ends_at: `None` while it runs.
        ended_by: `None` while it runs.
    """

    begins_at: datetime
    ends_at: datetime | None = None
    ended_by: EndedBy | None = None


@dataclass(frozen=True, slots=True)
class InstanceLife:
    """
    One instance, all its runs, and what it costs per hour.

    Attributes:
        owner: `None` when nobody is named.
        runs: Ascending, not overlapping; only the last one may be open.
        prices: USD per hour; of the spot market in the instance's own zone, or one point on demand.
        ipv4_usd_per_hour: Of an address AWS assigns while it runs; `None` when unknown.
        has_public_ipv4: Whether it has such an address.
    """

    id: str
    owner: str | None
    instance_type: str
    zone: str
    market: Market
    runs: tuple[Run, ...]
    prices: PriceSeries
    has_public_ipv4: bool = False
    ipv4_usd_per_hour: Decimal | None = None


@dataclass(frozen=True, slots=True)
class VolumeLife:
    """
    One EBS volume; it costs from creation to deletion, whether or not anything runs.

    Attributes:
        size_gb: As provisioned.
        usd_per_gb_month: `None` when unknown.
        deleted_at: `None` while it exists.
        instance_id: The instance it was made for; empty when it stands alone.
    """

    id: str
    owner: str | None
    type: str
    size_gb: Decimal
    usd_per_gb_month: Decimal | None
    created_at: datetime
    deleted_at: datetime | None = None
    instance_id: str = ""


@dataclass(frozen=True, slots=True)
class AddressLife:
    """
    One Elastic IP; it costs from allocation to release, used or idle.

    Attributes:
        usd_per_hour: `None` when unknown.
        released_at: `None` while it is allocated.
    """

    id: str
    owner: str | None
    usd_per_hour: Decimal | None
    allocated_at: datetime
    released_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """Everything that costs, in any order."""

    instances: tuple[InstanceLife, ...] = ()
    volumes: tuple[VolumeLife, ...] = ()
    addresses: tuple[AddressLife, ...] = ()


@dataclass(frozen=True, slots=True)
class Charge:
    """
    Some seconds of one thing at one price: what the exact arithmetic is done with.

    Attributes:
        resource: Id of the instance, volume or address.
        owner: `None` when nobody is named.
        begins_at: Aware UTC, whole second.
        seconds: Whole, above 0; those that pad to a minimum included.
        usd: Price of `unit_seconds`, of the whole resource.
        unit_seconds: 3600 for a price per hour; the seconds of the calendar month for EBS.
    """

    kind: ChargeKind
    resource: str
    owner: str | None
    begins_at: datetime
    seconds: int
    usd: Decimal
    unit_seconds: int


@dataclass(frozen=True, slots=True)
class Unpriced:
    """
    Something that ran and whose price is not known: a problem, never zero.

    Attributes:
        what: One sentence part, such as `the spot price of g4dn.xlarge in us-east-1d at 2026-10-23T16:10:00Z`.
    """

    kind: ChargeKind
    resource: str
    owner: str | None
    what: str


@dataclass(frozen=True, slots=True)
class Costs:
    """
    What a timeline cost, charge by charge.

    Attributes:
        charges: In no order.
        unpriced: What could not be charged; with any, every sum is a lower bound.
        billed_instance_seconds: With minimums, without free runs.
        owners: Everybody named in the timeline, charged or not; sorted.
    """

    price_rule: PriceRule
    charges: tuple[Charge, ...]
    unpriced: tuple[Unpriced, ...]
    billed_instance_seconds: int
    owners: tuple[str, ...] = field(default=())
