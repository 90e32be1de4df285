"""What AWS sells: instance types, spot prices, offers, quotas. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum


class Market(StrEnum):
    """How an instance is bought."""

    SPOT = "spot"
    ON_DEMAND = "on-demand"


@dataclass(frozen=True)
class InstanceType:
    """
    One EC2 instance type.

    Attributes:
        name: As AWS writes it, `g4dn.xlarge`.
        vcpus: Counted against the quota.
        memory_gib: RAM.
        gpu_name: `T4`, `A10G`, ...; empty for a type without a GPU.
        gpus: Number of GPUs; 0 for none.
        gpu_memory_gib: Memory of one GPU.
        quota_family: `G`, `P` or `standard`: which vCPU quota counts it.
        has_local_disk: Whether it brings an instance-store disk.

    Source:
        EC2 `DescribeInstanceTypes`, October 2026.
    """

    name: str
    vcpus: int
    memory_gib: Decimal
    gpu_name: str
    gpus: int
    gpu_memory_gib: Decimal
    quota_family: str
    has_local_disk: bool = False


@dataclass(frozen=True)
class SpotPrice:
    """
    The current spot price of one instance type in one zone.

    Attributes:
        usd_per_hour: USD per instance-hour, Linux, before credits and tax.
        seen_at: When EC2 set this price; aware UTC.

    Source:
        EC2 `DescribeSpotPriceHistory`.
    """

    instance_type: str
    zone: str
    usd_per_hour: Decimal
    seen_at: datetime

    @property
    def region(self) -> str:
        """The region of the zone: its name without the letter."""
        return self.zone.rstrip("abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True)
class Place:
    """
    Where and how one launch attempt is made; what capacity is counted by.

    Attributes:
        zone: Availability zone; its region is a prefix of it.
    """

    region: str
    zone: str
    instance_type: str
    market: Market


@dataclass(frozen=True)
class Offer:
    """
    An instance type that can be asked for at a place, and its price now.

    Attributes:
        usd_per_hour: What the instance alone costs, USD per hour.
        on_demand_usd_per_hour: The same type on demand, for comparison; `None` when unknown.
        priced_at: When this price was seen; aware UTC.
    """

    place: Place
    type: InstanceType
    usd_per_hour: Decimal
    on_demand_usd_per_hour: Decimal | None
    priced_at: datetime


@dataclass(frozen=True)
class Quota:
    """
    AWS's limit on running vCPUs of one family and market in one region.

    Attributes:
        code: Service-quota code, `L-3819A6DF`.
        limit_vcpus: `None` when the account may not read it.
        used_vcpus: Of instances that count against it now; `None` when unknown.
    """

    code: str
    name: str
    region: str
    family: str
    market: Market
    limit_vcpus: int | None
    used_vcpus: int | None
