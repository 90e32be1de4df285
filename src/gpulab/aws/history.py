"""
What the account still remembers of our instances, as facts: tags, times, disks, prices. Hides EC2's words; guesses nothing.

EC2 forgets a terminated instance after about an hour and a spot price after 90 days; what it does not say becomes a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from gpulab.aws.errors import explained
from gpulab.aws.instances import disk_gib_in, end_in
from gpulab.aws.session import Cloud
from gpulab.model import fact
from gpulab.model import instance as tags
from gpulab.model.fact import Fact, Source
from gpulab.model.market import Market
from gpulab.model.moment import read_moment
from gpulab.model.timeline import EndedBy
from gpulab.planning.catalogue import instance_types, on_demand_prices
from gpulab.planning.snapshot import gp3_usd_per_gib_month

_Filters = list[dict[str, Any]]
PRICES_KEPT = timedelta(days=90)
_IPV4_USD = Decimal("0.005")
# A run is charged for a minute at least, and an instance that ends before it ran for nothing; EC2 does not tell the two apart.
_LEAST_CHARGED = timedelta(minutes=1)
_OVER = ("shutting-down", "terminated", "stopping", "stopped")


@dataclass(frozen=True)
class History:
    """
    What one region remembers.

    Attributes:
        unknown: Sentences about what it could not say.
    """

    facts: tuple[Fact, ...] = ()
    unknown: tuple[str, ...] = field(default=())


@explained("read what the account remembers")
def history_of(
    cloud: Cloud, region: str, *, owner: str, now: datetime, course: str = ""
) -> History:
    """
    Read everything with our tags in a region.

    Args:
        owner: Whose; `""` for everybody's in a shared account.
        course: Of which course only; `""` for any and none.

    Raises:
        GpulabError: AWS did not answer.

    Source:
        EC2 `DescribeInstances`, `DescribeVolumes`, `DescribeSpotInstanceRequests`, `DescribeSpotPriceHistory`.
    """
    ours = _ours(owner, course)
    rows = list(_rows(cloud, region, ours))
    requests = _spot_requests(cloud, region, rows)
    volumes = _volumes(cloud, region, ours)
    facts = [*_prices(cloud, region, rows, now)]
    unknown: list[str] = []
    for row in rows:
        end = _end(row, requests)
        facts += [_launched(row, region), _address(row), *([end] if end else [])]
        unknown += _unknown_of(row, end, volumes)
    ending = {disk for row in rows for disk in _ends_with_instance(row)}
    facts += [_volume(row, region, ends=row["VolumeId"] in ending) for row in volumes]
    facts += [_gone_disk(row, region) for row in rows if _is_told_by_tag(row, volumes)]
    return History(tuple(facts), tuple(unknown))


def _rows(cloud: Cloud, region: str, ours: _Filters) -> Iterator[Mapping[str, Any]]:
    pages = cloud.pages(
        "ec2",
        region,
        "describe_instances",
        doing=f"read the instances in {region}",
        Filters=ours,
    )
    for page in pages:
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


def _ours(owner: str, course: str) -> _Filters:
    wanted = ((tags.TAG_OWNER, owner), (tags.TAG_COURSE, course))
    which = [{"Name": f"tag:{tag}", "Values": [value]} for tag, value in wanted if value]
    return [{"Name": "tag-key", "Values": [tags.TAG_LAUNCH]}, *which]


def _launched(row: Mapping[str, Any], region: str) -> Fact:
    said = _tags(row)
    kind = next((t for t in instance_types() if t.name == row["InstanceType"]), None)
    listed = on_demand_prices().get((region, row["InstanceType"]))
    on_demand = listed.usd_per_hour if listed else None
    market = Market(row.get("InstanceLifecycle") or Market.ON_DEMAND)
    return fact.launched(
        row["InstanceId"],
        at=row["LaunchTime"],
        zone=row["Placement"]["AvailabilityZone"],
        instance_type=row["InstanceType"],
        market=market,
        usd_per_hour=on_demand if market is Market.ON_DEMAND else None,
        on_demand_usd_per_hour=on_demand,
        launch_id=said.get(tags.TAG_LAUNCH, ""),
        token=row.get("ClientToken", ""),
        name=said.get(tags.TAG_NAME, ""),
        owner=said.get(tags.TAG_OWNER, ""),
        course=said.get(tags.TAG_COURSE, ""),
        lab=said.get(tags.TAG_LAB, ""),
        gpus=kind.gpus if kind else None,
        expires_at=read_moment(said.get(tags.TAG_EXPIRES)),
        source=Source.AWS,
    )


def _address(row: Mapping[str, Any]) -> Fact:
    """An ended instance does not tell its address any more; ours always have one."""
    return fact.address(
        row["InstanceId"], at=row["LaunchTime"], usd_per_hour=_IPV4_USD, source=Source.AWS
    )


def _end(row: Mapping[str, Any], requests: Mapping[str, Mapping[str, Any]]) -> Fact | None:
    """Say when and by whom a run ended; from the spot request where the instance does not tell the time."""
    if row["State"]["Name"] not in _OVER:
        return None
    code = row.get("StateReason", {}).get("Code", "")
    status = requests.get(row.get("SpotInstanceRequestId", ""), {}).get("Status", {})
    at = end_in(row)
    if (
        at is None
        and status.get("UpdateTime")
        and str(status.get("Code", "")).startswith("instance-")
    ):
        at = status["UpdateTime"]
    if at is None:
        return None
    return fact.ended(
        row["InstanceId"],
        at=max(at, row["LaunchTime"]),
        by=EndedBy.AWS if code.startswith("Server.") else EndedBy.USER,
        is_final=row["State"]["Name"] in ("shutting-down", "terminated"),
        reason=code,
        source=Source.AWS,
    )


def _unknown_of(
    row: Mapping[str, Any], end: Fact | None, volumes: Iterable[Mapping[str, Any]]
) -> Iterator[str]:
    name, state = row["InstanceId"], row["State"]["Name"]
    if state in _OVER and end is None:
        yield f"{name} is {state}, and AWS does not say since when"
    attached = _attached(row, volumes)
    if not attached and _disk_gib(row) is None:
        yield f"{name}: its disk is gone, and with it what it cost"
    if end is not None and end.at - row["LaunchTime"] < _LEAST_CHARGED:
        yield f"{name} ended within a minute of its launch; it is charged for one, and cost nothing if it never ran"
    oldest = min((v["CreateTime"] for v in attached), default=row["LaunchTime"])
    if row["LaunchTime"] - oldest > timedelta(minutes=10):
        yield f"{name} was started again at {row['LaunchTime']:%Y-%m-%d %H:%M} UTC; AWS does not tell its earlier runs"


def _volumes(cloud: Cloud, region: str, ours: _Filters) -> list[Mapping[str, Any]]:
    pages = cloud.pages(
        "ec2",
        region,
        "describe_volumes",
        doing=f"read the disks in {region}",
        Filters=ours,
    )
    return [row for page in pages for row in page["Volumes"]]


def _ends_with_instance(row: Mapping[str, Any]) -> Iterator[str]:
    for mapping in row.get("BlockDeviceMappings", []):
        if mapping.get("Ebs", {}).get("DeleteOnTermination"):
            yield mapping["Ebs"]["VolumeId"]


def _volume(row: Mapping[str, Any], region: str, *, ends: bool) -> Fact:
    attached: Mapping[str, Any] = next(iter(row["Attachments"]), {})
    return fact.volume(
        row["VolumeId"],
        at=row["CreateTime"],
        type=row["VolumeType"],
        size_gb=row["Size"],
        usd_per_gb_month=gp3_usd_per_gib_month(region) if row["VolumeType"] == "gp3" else None,
        instance_id=attached.get("InstanceId", ""),
        ends_with_instance=ends,
        owner=_tags(row).get(tags.TAG_OWNER, ""),
        source=Source.AWS,
    )


def _attached(
    row: Mapping[str, Any], volumes: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    return [
        v for v in volumes if any(a["InstanceId"] == row["InstanceId"] for a in v["Attachments"])
    ]


def _is_told_by_tag(row: Mapping[str, Any], volumes: Iterable[Mapping[str, Any]]) -> bool:
    """Whether only its instance still tells of a disk. One that starts may have a disk which is not shown yet."""
    is_over = row["State"]["Name"] in ("shutting-down", "terminated")
    return is_over and _disk_gib(row) is not None and not _attached(row, volumes)


def _disk_gib(row: Mapping[str, Any]) -> int | None:
    return disk_gib_in(_tags(row))


def _gone_disk(row: Mapping[str, Any], region: str) -> Fact:
    return fact.volume(
        fact.root_disk_of(row["InstanceId"]),
        at=row["LaunchTime"],
        type="gp3",
        size_gb=_disk_gib(row) or 0,
        usd_per_gb_month=gp3_usd_per_gib_month(region),
        instance_id=row["InstanceId"],
        ends_with_instance=True,
        owner=_tags(row).get(tags.TAG_OWNER, ""),
        source=Source.AWS,
    )


def _spot_requests(
    cloud: Cloud, region: str, rows: Iterable[Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """Read the requests of ended spot instances; they outlive the instances' own words."""
    wanted = sorted(
        row["SpotInstanceRequestId"]
        for row in rows
        if row.get("SpotInstanceRequestId") and row["State"]["Name"] in _OVER
    )
    if not wanted:
        return {}
    pages = cloud.pages(
        "ec2",
        region,
        "describe_spot_instance_requests",
        doing=f"read the spot requests in {region}",
        Filters=[{"Name": "spot-instance-request-id", "Values": wanted}],
    )
    return {r["SpotInstanceRequestId"]: r for page in pages for r in page["SpotInstanceRequests"]}


def _prices(
    cloud: Cloud, region: str, rows: Iterable[Mapping[str, Any]], now: datetime
) -> Iterator[Fact]:
    """Read the price history of every place where one of ours ran, from the earliest launch there."""
    since: dict[tuple[str, str], datetime] = {}
    for row in rows:
        if row.get("InstanceLifecycle") == "spot":
            place = (row["Placement"]["AvailabilityZone"], row["InstanceType"])
            since[place] = min(since.get(place, now), row["LaunchTime"])
    for (zone, kind), begin in sorted(since.items()):
        yield from spot_price_facts(cloud, region, zone, kind, begin=begin, end=now)


def spot_price_facts(
    cloud: Cloud, region: str, zone: str, instance_type: str, *, begin: datetime, end: datetime
) -> Iterator[Fact]:
    """Read one place's spot prices, the one in force at `begin` included; at most 90 days back."""
    pages = cloud.pages(
        "ec2",
        region,
        "describe_spot_price_history",
        doing=f"read the spot prices of {instance_type} in {zone}",
        AvailabilityZone=zone,
        InstanceTypes=[instance_type],
        ProductDescriptions=[fact.LINUX],
        StartTime=max(begin, end - PRICES_KEPT),
        EndTime=end,
    )
    for row in (row for page in pages for row in page["SpotPriceHistory"]):
        usd = Decimal(row["SpotPrice"])
        yield fact.price(zone, instance_type, at=row["Timestamp"], usd_per_hour=usd)


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in row.get("Tags", [])}
