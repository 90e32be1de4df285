"""Everything in a region that carries our tags and can cost, and how each kind is deleted. Never looks at what is not tagged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gpulab.aws import end_schedule, instances
from gpulab.aws.errors import explained
from gpulab.aws.market import spot_prices
from gpulab.aws.session import Cloud
from gpulab.errors import GpulabError, NotFound
from gpulab.model.instance import (
    TAG_BAKE,
    TAG_EXPIRES,
    TAG_LAUNCH,
    TAG_NAME,
    TAG_OWNER,
    TAG_USABLE,
)
from gpulab.model.leftover import Kind, Tagged
from gpulab.model.market import Market, Place
from gpulab.model.moment import read_moment
from gpulab.planning.catalogue import on_demand_prices
from gpulab.planning.snapshot import gp3_usd_per_gib_month

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

_HOURS_A_MONTH = 730
_ADDRESS_USD_PER_HOUR = Decimal("0.005")
# EBS snapshots, standard tier, us-east-1; changed blocks only, so this is the upper end.
_SNAPSHOT_USD_PER_GIB_MONTH = Decimal("0.05")


@explained("look for leftovers")
def in_region(cloud: Cloud, region: str, *, owner: str, now: datetime) -> tuple[Tagged, ...]:
    """
    Find everything of ours in a region.

    Args:
        owner: Whose; `""` for everything with our tags.
        now: Whose spot prices are shown.

    Raises:
        GpulabError: One kind could not be read; then nothing is said about the region.
    """
    readers = (
        _spot_requests,
        _addresses,
        _volumes,
        _images,
        _snapshots,
        _groups,
        _keys,
    )
    found = list(_instances(cloud, region, _filter(owner), now))
    found += (r for read in readers for r in read(cloud, region, _filter(owner)))
    live = {r.id for r in found if r.kind is Kind.INSTANCE}
    return (*found, *_schedules(cloud, region, live, owner))


def delete(cloud: Cloud, resource: Tagged) -> None:
    """
    Delete one resource; one that is gone is fine.

    Raises:
        GpulabError: AWS refuses; `DependencyViolation` means later.
    """
    ec2: EC2Client = cloud.client("ec2", resource.region)
    ways: dict[Kind, Callable[[], object]] = {
        Kind.INSTANCE: lambda: ec2.terminate_instances(InstanceIds=[resource.id]),
        Kind.SPOT_REQUEST: lambda: ec2.cancel_spot_instance_requests(
            SpotInstanceRequestIds=[resource.id]
        ),
        Kind.SCHEDULE: lambda: end_schedule.remove(cloud, resource.region, resource.id),
        Kind.ADDRESS: lambda: ec2.release_address(AllocationId=resource.id),
        Kind.VOLUME: lambda: ec2.delete_volume(VolumeId=resource.id),
        Kind.IMAGE: lambda: ec2.deregister_image(ImageId=resource.id),
        Kind.SNAPSHOT: lambda: ec2.delete_snapshot(SnapshotId=resource.id),
        Kind.SECURITY_GROUP: lambda: ec2.delete_security_group(GroupId=resource.id),
        Kind.KEY_PAIR: lambda: ec2.delete_key_pair(KeyName=resource.id),
    }
    try:
        with cloud.explained(f"delete {resource.kind} {resource.id}"):
            ways[resource.kind]()
    except NotFound:
        return


def _filter(owner: str) -> list[dict[str, Any]]:
    if owner:
        return [{"Name": f"tag:{TAG_OWNER}", "Values": [owner]}]
    return [{"Name": "tag-key", "Values": [TAG_OWNER]}]


def _pages(
    cloud: Cloud, region: str, operation: str, key: str, filters: list[dict[str, Any]], **more: Any
) -> Iterator[Mapping[str, Any]]:
    doing = f"look for leftovers in {region}"
    for page in cloud.pages("ec2", region, operation, doing=doing, Filters=filters, **more):
        yield from page[key]


def _instances(
    cloud: Cloud, region: str, filters: list[dict[str, Any]], now: datetime
) -> Iterator[Tagged]:
    states = ["pending", "running", "stopping", "stopped"]
    alive = [*filters, {"Name": "instance-state-name", "Values": states}]
    pages = _pages(cloud, region, "describe_instances", "Reservations", alive)
    rows = [row for reservation in pages for row in reservation["Instances"]]
    found = [instances.read_instance(row, region) for row in rows]
    spot = _spot_prices(cloud, region, [seen.place for seen in found], now)
    for row, seen in zip(rows, found, strict=True):
        tagged = _tagged(
            Kind.INSTANCE,
            seen.id,
            region,
            row.get("Tags", []),
            state=seen.state.value,
            created_at=seen.launched_at,
        )
        yield _priced(tagged, seen.place, spot) if seen.state.is_alive else tagged


def _spot_prices(
    cloud: Cloud, region: str, places: Iterable[Place], now: datetime
) -> Mapping[tuple[str, str], Decimal]:
    """Read what spot instances cost now, by type and zone; empty where that is not told: what they are matters more."""
    types = {place.instance_type for place in places if place.market is Market.SPOT}
    if not types:
        return {}
    try:
        prices = spot_prices(cloud, region, types, now=now)
    except GpulabError:
        return {}
    return {(p.instance_type, p.zone): p.usd_per_hour for p in prices}


def _priced(tagged: Tagged, place: Place, spot: Mapping[tuple[str, str], Decimal]) -> Tagged:
    """Price an instance: a spot one at its spot price where that is known, everything else on demand."""
    usd = spot.get((place.instance_type, place.zone)) if place.market is Market.SPOT else None
    if usd is not None:
        return replace(tagged, usd_per_month=usd * _HOURS_A_MONTH, priced_as=Market.SPOT)
    price = on_demand_prices().get((place.region, place.instance_type))
    if price is None:
        return replace(tagged, usd_per_month=None)
    monthly = price.usd_per_hour * _HOURS_A_MONTH
    return replace(tagged, usd_per_month=monthly, priced_as=Market.ON_DEMAND)


def _spot_requests(cloud: Cloud, region: str, filters: list[dict[str, Any]]) -> Iterator[Tagged]:
    live = [*filters, {"Name": "state", "Values": ["open", "active"]}]
    operation, key = "describe_spot_instance_requests", "SpotInstanceRequests"
    for row in _pages(cloud, region, operation, key, live):
        yield _tagged(
            Kind.SPOT_REQUEST,
            row["SpotInstanceRequestId"],
            region,
            row.get("Tags", []),
            state=row.get("State", ""),
            uses=row.get("InstanceId", ""),
            created_at=row.get("CreateTime"),
        )


def _addresses(cloud: Cloud, region: str, filters: list[dict[str, Any]]) -> Iterator[Tagged]:
    ec2: EC2Client = cloud.client("ec2", region)
    with cloud.explained(f"look for leftovers in {region}"):
        rows = ec2.describe_addresses(Filters=filters)["Addresses"]  # type: ignore[arg-type] # plain dicts
    for row in rows:
        yield _tagged(
            Kind.ADDRESS,
            row.get("AllocationId", ""),
            region,
            row.get("Tags", []),
            uses=row.get("InstanceId") or row.get("AssociationId") or "",
            usd_per_month=_ADDRESS_USD_PER_HOUR * _HOURS_A_MONTH,
        )


def _volumes(cloud: Cloud, region: str, filters: list[dict[str, Any]]) -> Iterator[Tagged]:
    for row in _pages(cloud, region, "describe_volumes", "Volumes", filters):
        attached = row.get("Attachments", [])
        yield _tagged(
            Kind.VOLUME,
            row["VolumeId"],
            region,
            row.get("Tags", []),
            state=row.get("State", ""),
            uses=attached[0].get("InstanceId", "") if attached else "",
            created_at=row.get("CreateTime"),
            usd_per_month=gp3_usd_per_gib_month(region) * row["Size"],
        )


def _images(cloud: Cloud, region: str, filters: list[dict[str, Any]]) -> Iterator[Tagged]:
    for row in _pages(cloud, region, "describe_images", "Images", filters, Owners=["self"]):
        yield _tagged(
            Kind.IMAGE,
            row["ImageId"],
            region,
            row.get("Tags", []),
            state=row.get("State", ""),
            created_at=read_moment(row.get("CreationDate")),
        )


def _snapshots(cloud: Cloud, region: str, filters: list[dict[str, Any]]) -> Iterator[Tagged]:
    rows = _pages(cloud, region, "describe_snapshots", "Snapshots", filters, OwnerIds=["self"])
    for row in rows:
        yield _tagged(
            Kind.SNAPSHOT,
            row["SnapshotId"],
            region,
            row.get("Tags", []),
            state=row.get("State", ""),
            created_at=row.get("StartTime"),
            usd_per_month=_SNAPSHOT_USD_PER_GIB_MONTH * row.get("VolumeSize", 0),
        )


def _groups(cloud: Cloud, region: str, filters: list[dict[str, Any]]) -> Iterator[Tagged]:
    for row in _pages(cloud, region, "describe_security_groups", "SecurityGroups", filters):
        yield _tagged(Kind.SECURITY_GROUP, row["GroupId"], region, row.get("Tags", []))


def _keys(cloud: Cloud, region: str, filters: list[dict[str, Any]]) -> Iterator[Tagged]:
    ec2: EC2Client = cloud.client("ec2", region)
    with cloud.explained(f"look for leftovers in {region}"):
        rows = ec2.describe_key_pairs(Filters=filters)["KeyPairs"]  # type: ignore[arg-type] # plain dicts
    for row in rows:
        at = row.get("CreateTime")
        yield _tagged(Kind.KEY_PAIR, row["KeyName"], region, row.get("Tags", []), created_at=at)


def _schedules(cloud: Cloud, region: str, live: Iterable[str], owner: str) -> Iterator[Tagged]:
    """Find the schedules whose instance is alive and ours, or gone."""
    mine = set(live)
    for name, instance_id in end_schedule.schedules(cloud, region, owner=owner).items():
        if instance_id in mine or _is_gone(cloud, region, instance_id, owner):
            yield Tagged(Kind.SCHEDULE, name, region, "", "", uses=instance_id)


def _is_gone(cloud: Cloud, region: str, instance_id: str, owner: str) -> bool:
    try:
        seen = instances.read(cloud, region, instance_id)
    except NotFound:
        return True
    return not seen.state.is_alive and owner in ("", seen.owner)


def _tagged(
    kind: Kind,
    resource_id: str,
    region: str,
    tags: Iterable[Any],
    *,
    state: str = "",
    uses: str = "",
    created_at: datetime | None = None,
    usd_per_month: Decimal | None = Decimal(0),
) -> Tagged:
    pairs = {t["Key"]: t["Value"] for t in tags}
    return Tagged(
        kind=kind,
        id=resource_id,
        region=region,
        name=pairs.get(TAG_NAME, ""),
        launch_id=pairs.get(TAG_LAUNCH, ""),
        state=state,
        uses=uses,
        created_at=created_at.astimezone(UTC) if created_at else None,
        expires_at=read_moment(pairs.get(TAG_EXPIRES)),
        usd_per_month=usd_per_month,
        bake_id=pairs.get(TAG_BAKE, ""),
        is_usable=pairs.get(TAG_USABLE) == "true",
    )
