"""
What live tests launch, and what that costs at most: each instance for the whole of its own end, at the on-demand price, which no spot price passes.

Tests launch by a name of this table and nothing else, so what they make is what is added up here. What several tests share is paid once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_UP, Decimal

from gpulab.launch import bake
from gpulab.launch.protocol.scheduled_end import AFTER_DEADLINE
from gpulab.planning.catalogue import on_demand_prices
from gpulab.planning.snapshot import Limits, gp3_usd_per_gib_month

GPU = "g4dn.xlarge"
PLAIN = "t3.medium"
SMALL = "t3.micro"
SCARCE = "g5.xlarge"
EXTENDED_BY = timedelta(minutes=5)
# The account's own end comes so long after the instance's, the scheduler is exact to the minute, and the kernel takes its time.
_LATE = AFTER_DEADLINE + timedelta(minutes=2)
_HOURS_A_MONTH = 730
_GPU_DISK_GIB = 80  # AWS's GPU image takes 65


@dataclass(frozen=True)
class Launch:
    """
    One instance that a test launches.

    Attributes:
        name: By what name; the instance is called `live-NAME`.
        ends_after: Its own end, which is armed when it boots: the agent's timer and a schedule in the account, or a timer in its user data.
        extended_by: How far a test moves that end.
        times: How many of them may live to that end.
    """

    name: str
    type: str
    ends_after: timedelta
    extended_by: timedelta = timedelta(0)
    times: int = 1
    disk_gib: int = 20

    def usd(self, region: str) -> Decimal:
        """What it costs at most: instance, address, disk, until the account has ended it."""
        disk = self.disk_gib * gp3_usd_per_gib_month(region) / _HOURS_A_MONTH
        hourly = (
            on_demand_prices()[region, self.type].usd_per_hour + Limits.address_usd_per_hour + disk
        )
        hours = Decimal((self.ends_after + self.extended_by + _LATE).total_seconds()) / 3600
        return self.times * hourly * hours


@dataclass(frozen=True)
class Need:
    """
    What some tests share.

    Attributes:
        launches: Every instance they launch.
        beside_usd: What is billed beside instances, with why.
    """

    launches: tuple[Launch, ...]
    beside_usd: Decimal = Decimal(0)
    beside: str = ""


def _minutes(count: int) -> timedelta:
    return timedelta(minutes=count)


NEEDS = {
    "lab": Need(
        (Launch("lab", GPU, _minutes(45), extended_by=EXTENDED_BY, disk_gib=_GPU_DISK_GIB),)
    ),
    "short": Need((Launch("short", PLAIN, _minutes(12)),)),
    # https://aws.amazon.com/fis/pricing/, November 2026: $0.10 for each minute of an action; it is over with the notice's two.
    "interrupted": Need(
        (Launch("interrupted", PLAIN, _minutes(20)),),
        Decimal("0.30"),
        "AWS Fault Injection Service, 3 min",
    ),
    # A snapshot's month at $0.05 a GiB for a day, and 20 GiB filled at a rate for $0.0036 each.
    "image": Need(
        (
            Launch("image", PLAIN, bake.BUILD),
            Launch("image-test", PLAIN, bake.TEST),
            Launch("baked", PLAIN, _minutes(20)),
            Launch("rate0", PLAIN, _minutes(20)),
            Launch("rate300", PLAIN, _minutes(20)),
        ),
        Decimal("0.11"),
        "a snapshot for a day, one disk filled at a rate",
    ),
    "packer": Need(
        (Launch("packer", PLAIN, timedelta(hours=2)),), Decimal("0.04"), "a snapshot for a day"
    ),
    "tf1": Need((Launch("tf1", GPU, _minutes(30), disk_gib=_GPU_DISK_GIB),)),
    "small": Need((Launch("small", SMALL, _minutes(8)),)),
    "refused": Need(
        (
            Launch("refused", SMALL, _minutes(4), times=3),
            Launch("full", SCARCE, _minutes(4), times=2),
        )
    ),
}


def launch(name: str) -> tuple[str, Launch]:
    """Find what a test launches, and in which need it is paid; a name that is not here costs what nobody was told."""
    (found,) = (
        (need, one) for need, known in NEEDS.items() for one in known.launches if one.name == name
    )
    return found


def usd(need: str, region: str) -> Decimal:
    """What one need costs at most, in whole cents upwards."""
    found = NEEDS[need]
    exact = sum((one.usd(region) for one in found.launches), found.beside_usd)
    return exact.quantize(Decimal("0.01"), ROUND_UP)


def total(needs: Iterable[str], region: str) -> Decimal:
    """Add up what some tests need, each thing once."""
    return sum((usd(need, region) for need in set(needs)), Decimal(0))


def bill(needs: Iterable[str], region: str) -> str:
    """Write what some tests need, a line each: every instance with the end it carries."""
    chosen = sorted(set(needs))
    lines = [f"  at most ${usd(need, region)}  {need}: {_parts(NEEDS[need])}" for need in chosen]
    return "\n".join([f"live tests cost at most ${total(needs, region)} in all ({region})", *lines])


def _parts(need: Need) -> str:
    parts = [
        f"{one.times} x {one.type} that end{'s' * (one.times == 1)} after {(one.ends_after + one.extended_by) // timedelta(minutes=1)} min"
        for one in need.launches
    ]
    return "; ".join([*parts, *([need.beside] if need.beside else [])])
