"""
What everything cost, second by second, from the layer's own history: to check a ledger against, so it shares no code with one.

Rules: whole seconds of a run, 60 at least; spot pays for each instance-hour the price in force when that hour of the run began, and
nothing for a run that AWS ended within its first hour; EBS by the seconds of the UTC month; public IPv4 by the second.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from gpulab.sandbox import moto_bridge

if TYPE_CHECKING:
    from gpulab.sandbox.instances import SimInstance
    from gpulab.sandbox.world import World

#: USD per GB-month, us-east-1.
EBS_RATES = {
    "gp3": Decimal("0.08"),
    "gp2": Decimal("0.10"),
    "io1": Decimal("0.125"),
    "io2": Decimal("0.125"),
    "st1": Decimal("0.045"),
    "sc1": Decimal("0.015"),
    "standard": Decimal("0.05"),
}
IPV4_PER_HOUR = Decimal("0.005")
_HOUR = 3600


@dataclass(frozen=True)
class BillLine:
    """
    What one resource cost in one stretch of time.

    Attributes:
        kind: `instance`, `ebs` or `ipv4`.
        usage_type: As the Cost and Usage Report names it, `SpotUsage:g4dn.xlarge`.
        seconds: Billed, with the 60 seconds at least.
        owner: The resource's `gpulab:owner` tag; empty without one.
    """

    resource_id: str
    account: str
    region: str
    kind: str
    usage_type: str
    begins_at: datetime
    ends_at: datetime
    seconds: int
    usd: Decimal
    owner: str = ""


@dataclass(frozen=True)
class Bill:
    """All lines up to a moment; nothing is rounded."""

    as_of: datetime
    lines: tuple[BillLine, ...]

    @property
    def total_usd(self) -> Decimal:
        """Everything together."""
        return sum((line.usd for line in self.lines), Decimal(0))

    def of(self, resource_id: str) -> Decimal:
        """What one resource cost."""
        return sum((line.usd for line in self.lines if line.resource_id == resource_id), Decimal(0))

    def of_kind(self, kind: str) -> Decimal:
        """What one kind of resource cost."""
        return sum((line.usd for line in self.lines if line.kind == kind), Decimal(0))


@dataclass
class Held:
    """A volume or an address from its creation to its end; a change of size begins a new stretch."""

    id: str
    account: str
    region: str
    kind: str
    type: str
    size_gib: int
    began_at: datetime
    ended_at: datetime | None = None
    owner: str = ""


class Books:
    """
    What exists and since when, learned by looking after every call that may have changed it.

    Args:
        world: Whose resources are watched.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._held: list[Held] = []

    def observe(self, account: str, region: str) -> None:
        """Note volumes and addresses that have come, gone or changed."""
        now = self._world.now()
        backend = moto_bridge.ec2(account, region)
        there = {
            (v.id, "ebs", v.volume_type, int(v.size)) for v in moto_bridge.volumes(backend).values()
        }
        there |= {(id_, "ipv4", "elastic", 0) for id_ in moto_bridge.addresses(backend)}
        open_ = [
            h
            for h in self._held
            if h.ended_at is None and (h.account, h.region) == (account, region)
        ]
        for held in open_:
            key = (held.id, held.kind, held.type, held.size_gib)
            if key in there:
                there.discard(key)
            else:
                held.ended_at = now
        for id_, kind, type_, size in sorted(there):
            owner = moto_bridge.tags_of(backend, id_).get("gpulab:owner", "")
            self._held.append(Held(id_, account, region, kind, type_, size, now, None, owner))

    def bill(self, as_of: datetime) -> Bill:
        """Everything up to a moment; what still runs is billed up to then."""
        lines = [
            line
            for i in self._world.instances_by_id.values()
            for line in _runs(self._world, i, as_of)
        ]
        lines += [_held_line(held, as_of) for held in self._held if held.began_at < as_of]
        return Bill(as_of, tuple(lines))


def ebs_cost(size_gib: int, rate: Decimal, begins_at: datetime, seconds: int) -> Decimal:
    """GB times rate times the share of each UTC month that the seconds take."""
    total = Decimal(0)
    at, left = begins_at.astimezone(UTC), Decimal(seconds)
    while left > 0:
        year, month = at.year, at.month
        following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
        here = min(left, Decimal((following - at) / timedelta(microseconds=1)) / 1_000_000)
        month_seconds = 86_400 * calendar.monthrange(year, month)[1]
        total += size_gib * rate * here / month_seconds
        at, left = following, left - here
    return total


def _runs(world: World, instance: SimInstance, as_of: datetime) -> Iterator[BillLine]:
    began: datetime | None = None
    history = [(event.at, event.type) for event in instance.events if event.at <= as_of]
    for at, type_ in [*history, (as_of, "open")]:
        if type_ in ("launch", "start"):
            began = at
        elif began is not None:
            yield from _run(world, instance, began, at, by_aws=type_.startswith("aws_"))
            began = None


def _run(
    world: World, instance: SimInstance, began: datetime, ended: datetime, *, by_aws: bool
) -> Iterator[BillLine]:
    lasted = _whole_seconds(began, ended)
    billed = max(60, lasted)
    is_spot = instance.market == "spot"
    if is_spot and by_aws and lasted < _HOUR:
        usd = Decimal(0)
    elif is_spot:
        usd = _spot_cost(world, instance, began, billed)
    else:
        usd = world.on_demand_price(instance.instance_type, instance.region) * billed / _HOUR
    usage = "SpotUsage" if is_spot else "BoxUsage"
    owner = instance.tags.get("gpulab:owner", "")
    here = (instance.id, instance.account, instance.region)
    yield BillLine(
        *here, "instance", f"{usage}:{instance.instance_type}", began, ended, billed, usd, owner
    )
    if instance.had_public_address:
        usd = IPV4_PER_HOUR * lasted / _HOUR
        yield BillLine(*here, "ipv4", "PublicIPv4:InUseAddress", began, ended, lasted, usd, owner)


def _spot_cost(world: World, instance: SimInstance, began: datetime, seconds: int) -> Decimal:
    total = Decimal(0)
    for start in range(0, seconds, _HOUR):
        price = world.prices.price(
            instance.instance_type, instance.zone, began + timedelta(seconds=start)
        )
        total += price * min(_HOUR, seconds - start) / _HOUR
    return total


def _held_line(held: Held, as_of: datetime) -> BillLine:
    ended = min(held.ended_at or as_of, as_of)
    seconds = _whole_seconds(held.began_at, ended)
    if held.kind == "ebs":
        seconds = max(60, seconds)
        rate = EBS_RATES.get(held.type, EBS_RATES["gp3"])
        usd = ebs_cost(held.size_gib, rate, held.began_at, seconds)
        usage = f"EBS:VolumeUsage.{held.type}"
    else:
        usd = IPV4_PER_HOUR * seconds / _HOUR
        usage = "PublicIPv4:IdleAddress"
    here = (held.id, held.account, held.region)
    return BillLine(*here, held.kind, usage, held.began_at, ended, seconds, usd, held.owner)


def _whole_seconds(began: datetime, ended: datetime) -> int:
    return int((ended - began).total_seconds())
