"""
Instance types and on-demand prices as shipped with gpulab. Hides the files; refuses nothing.

Live answers of AWS are preferred; these stand in where an account may not ask. Their sources are in `SOURCE.md` beside this file.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from importlib import resources

from gpulab.model.market import InstanceType

# AWS changed GPU prices by a third within two years (p4d, p5: June 2025); half a year is when we begin to doubt.
OLD_AFTER = timedelta(days=183)


@dataclass(frozen=True)
class ListedPrice:
    """
    An on-demand price from the shipped list.

    Attributes:
        usd_per_hour: Linux, shared tenancy.
        as_of: When AWS published it; aware UTC.
    """

    region: str
    instance_type: str
    usd_per_hour: Decimal
    as_of: datetime

    def is_old(self, now: datetime) -> bool:
        """Whether the price deserves a warning."""
        return now - self.as_of > OLD_AFTER


@cache
def instance_types() -> tuple[InstanceType, ...]:
    """Return the types gpulab knows, sorted by name: x86_64, whole NVIDIA GPUs or none."""
    return tuple(sorted(map(_type, _rows("instance_types.csv")), key=lambda t: t.name))


@cache
def on_demand_prices() -> Mapping[tuple[str, str], ListedPrice]:
    """Return on-demand prices by (region, instance type)."""
    listed = map(_price, _rows("on_demand.csv"))
    return {(p.region, p.instance_type): p for p in listed}


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _type(row: dict[str, str]) -> InstanceType:
    return InstanceType(
        name=row["name"],
        vcpus=int(row["vcpus"]),
        memory_gib=Decimal(row["memory_gib"]),
        gpu_name=row["gpu_name"],
        gpus=int(row["gpus"]),
        gpu_memory_gib=Decimal(row["gpu_memory_gib"]),
        quota_family=row["quota_family"],
        has_local_disk=row["has_local_disk"] == "yes",
    )


def _price(row: dict[str, str]) -> ListedPrice:
    return ListedPrice(
        region=row["region"],
        instance_type=row["instance_type"],
        usd_per_hour=Decimal(row["usd_per_hour"]),
        as_of=datetime.fromisoformat(row["as_of"]),
    )
