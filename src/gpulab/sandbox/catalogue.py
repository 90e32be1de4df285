"""Instance types, their simulated prices and their quota codes, from the shipped table (`data/NOTICE.md` says from where)."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files

from gpulab.sandbox import moto_bridge

#: Price of a region over that of us-east-1, October 2017, median over the types of ec2instances.info 0.0.2.
_REGION_FACTOR = {
    "us-east-1": "1",
    "us-east-2": "1",
    "us-west-2": "1",
    "us-west-1": "1.25",
    "ca-central-1": "1.106",
    "eu-west-1": "1.08",
    "eu-west-2": "1.167",
    "eu-central-1": "1.188",
    "ap-south-1": "1.25",
    "ap-southeast-1": "1.277",
    "ap-southeast-2": "1.382",
    "ap-northeast-1": "1.382",
    "ap-northeast-2": "1.362",
    "sa-east-1": "1.667",
    "us-gov-west-1": "1.2",
}

#: Families of the quota codes where the table does not have the type.
_ON_DEMAND_CODES = {"g": "L-DB2E81BA", "v": "L-DB2E81BA", "p": "L-417A185B"}
_SPOT_CODES = {"g": "L-3819A6DF", "v": "L-3819A6DF", "p": "L-7212CCBC"}


@dataclass(frozen=True)
class TypeFacts:
    """
    What the layer knows of an instance type.

    Attributes:
        usd_per_hour: Simulated on-demand price in us-east-1, Linux.
        is_listed: Whether the price is from the table; otherwise it is a guess from the vCPUs.
    """

    name: str
    vcpus: int
    is_gpu: bool
    free_tier: bool
    quota_on_demand: str
    quota_spot: str
    usd_per_hour: Decimal
    is_listed: bool


def facts(instance_type: str) -> TypeFacts | None:
    """What is known of a type; `None` when EC2 does not have it."""
    described = moto_bridge.instance_type(instance_type)
    if described is None:
        return None
    row = _table().get(instance_type, {})
    vcpus = int(described["VCpuInfo"]["DefaultVCpus"])
    letter = (
        instance_type[0] if instance_type[1:2].isdigit() or instance_type.startswith("gr") else ""
    )
    price = row.get("usd_per_hour") or ""
    return TypeFacts(
        name=instance_type,
        vcpus=vcpus,
        is_gpu="GpuInfo" in described,
        free_tier=bool(described.get("FreeTierEligible")),
        quota_on_demand=row.get("quota_on_demand") or _ON_DEMAND_CODES.get(letter, "L-1216C47A"),
        quota_spot=row.get("quota_spot") or _SPOT_CODES.get(letter, "L-34B43A08"),
        usd_per_hour=Decimal(price) if price else Decimal("0.048") * vcpus,
        is_listed=bool(price),
    )


def listed() -> tuple[str, ...]:
    """The types whose price is in the table, sorted."""
    return tuple(sorted(name for name, row in _table().items() if row["usd_per_hour"]))


def on_demand_price(instance_type: str, region: str) -> Decimal:
    """The simulated on-demand price, USD per hour, Linux; 0 for a type EC2 does not have."""
    found = facts(instance_type)
    if found is None:
        return Decimal(0)
    factor = Decimal(_REGION_FACTOR.get(region, "1.1"))
    return (found.usd_per_hour * factor).quantize(Decimal("0.0001")).normalize() + Decimal("0.0")


@cache
def spot_series() -> tuple[tuple[tuple[int, Decimal], ...], ...]:
    """Real spot prices over on-demand price: per series the changes, seconds from its beginning and ratio, in order."""
    data = json.loads((files("gpulab.sandbox") / "data" / "spot_series.json").read_text())
    return tuple(
        tuple((int(at), Decimal(str(ratio))) for at, ratio in series["changes"])
        for series in data["series"]
    )


@cache
def _table() -> dict[str, dict[str, str]]:
    text = (files("gpulab.sandbox") / "data" / "instance_types.csv").read_text()
    return {row["instance_type"]: row for row in csv.DictReader(text.splitlines())}
