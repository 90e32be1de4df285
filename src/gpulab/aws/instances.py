"""
Instances: launching one, finding mine, their console, their end. Hides EC2's words for them; launches nothing untagged.

A launch is one `RunInstances` call whose parameters are built beforehand, so that the journal can hold them and the same bytes can be
sent again with the same token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.errors import AwsError, NotFound
from gpulab.model import instance as tags_of
from gpulab.model.instance import Instance, State
from gpulab.model.market import Market, Place
from gpulab.model.moment import read_moment
from gpulab.model.setup import Image, Subnet
from gpulab.planning.catalogue import instance_types
from gpulab.planning.quotas import family_of

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client

_IDS_A_CALL = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LIVE_STATES = ["pending", "running", "shutting-down", "stopping", "stopped"]
# Of its first run an instance's interface is as old as the run; a stop and a start take longer than this.
_ONE_RUN = timedelta(seconds=30)
# `User initiated (2026-11-16 09:00:00 GMT)`
_WHEN = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) GMT\)")


@dataclass(frozen=True)
class LaunchCall:
    """
    Everything one launch call says.

    Attributes:
        token: Client token, at most 64 ASCII characters, one for each attempt and place.
        tags: Opaque ids only; everybody in the account can read them.
        user_data: Raw, at most 16384 bytes.
        spot_cap: Maximum spot price to send; `None` leaves AWS's default, the on-demand price.
        instance_role: Name of the instance profile; `""` for none.
        initialization_mib_s: 100 to 300, billed by the GiB of the snapshot; `None` for EBS's own way, which is slow and free.
    """

    place: Place
    image: Image
    subnet: Subnet
    security_group_id: str
    key_name: str
    token: str
    tags: Mapping[str, str]
    user_data: bytes
    disk_gib: int
    spot_cap: Decimal | None = None
    instance_role: str = ""
    initialization_mib_s: int | None = None


@dataclass(frozen=True)
class RegionInstances:
    """
    What runs in one region.

    Attributes:
        mine: Instances with our tags and owner, newest first.
        used_vcpus: vCPUs that count against each quota, whoever launched them, by (family, market).
        is_baking: Whether anybody's builder or test instance of an image was among them.
    """

    mine: tuple[Instance, ...]
    used_vcpus: Mapping[tuple[str, Market], int]
    is_baking: bool = False


def launch_parameters(call: LaunchCall) -> dict[str, Any]:
    """
    Build the parameters of `RunInstances`, without the user data: plain JSON, always the same for the same call.

    Source:
        https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RunInstances.html
    """
    spot = call.place.market is Market.SPOT
    kinds = ["instance", "volume", *(["spot-instances-request"] if spot else [])]
    said = {**call.tags, tags_of.TAG_DISK: str(_root_gib(call))}
    pairs = [{"Key": key, "Value": value} for key, value in sorted(said.items())]
    parameters: dict[str, Any] = {
        "ImageId": call.image.id,
        "InstanceType": call.place.instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": call.token,
        "KeyName": call.key_name,
        "Placement": {"AvailabilityZone": call.place.zone},
        "BlockDeviceMappings": [_root_volume(call)],
        "InstanceInitiatedShutdownBehavior": "terminate",
        # Hop limit 1: a container or a forwarded request on the instance cannot reach its metadata.
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
            "InstanceMetadataTags": "enabled",
        },
        "TagSpecifications": [{"ResourceType": kind, "Tags": pairs} for kind in kinds],
        **_reached_by(call),
    }
    if spot:
        parameters["InstanceMarketOptions"] = _one_time_spot(call.spot_cap)
    if call.instance_role:
        parameters["IamInstanceProfile"] = {"Name": call.instance_role}
    if call.place.instance_type.startswith("t"):
        # Burstable types start in unlimited mode, where surplus use costs extra, on spot too.
        parameters["CreditSpecification"] = {"CpuCredits": "standard"}
    return parameters


@explained("launch an instance")
def run(cloud: Cloud, region: str, parameters: Mapping[str, Any], user_data: bytes) -> Instance:
    """
    Make one launch call; never repeated by botocore.

    Returns:
        The instance as EC2 first reports it: `pending`, mostly without a public address.

    Raises:
        GpulabError: Of the class that says what to do next; `Ambiguous` means the same call, same token.
    """
    ec2: EC2Client = cloud.client("ec2", region, is_patient=False)
    zone = parameters["Placement"]["AvailabilityZone"]
    with cloud.explained(f"launch {parameters['InstanceType']} in {zone}"):
        # botocore takes bytes as well and encodes them once.
        reply = ec2.run_instances(**parameters, UserData=user_data)  # type: ignore[arg-type]
    return read_instance(reply["Instances"][0], region)


@explained("list the instances")
def in_region(
    cloud: Cloud, region: str, *, owner: str, with_ended: bool = False
) -> RegionInstances:
    """
    Read every instance of a region that has not ended, in one paginated call.

    Args:
        owner: Whose count as mine; `""` for everything with our tags.
        with_ended: Also those that have, as long as EC2 remembers them: about an hour.
    """
    states = [*_LIVE_STATES, *(["terminated"] if with_ended else [])]
    rows = list(_rows(cloud, region, {"instance-state-name": states}))
    used: dict[tuple[str, Market], int] = {}
    for row in rows:
        if row["State"]["Name"] in ("pending", "running"):
            counted = (family_of(row["InstanceType"]), _market(row))
            used[counted] = used.get(counted, 0) + _vcpus(row)
    found = [read_instance(row, region) for row in rows]
    is_baking = any(i.launch_id and i.name.startswith(tags_of.BAKE_NAME) for i in found)
    mine = _newest_first(i for i in found if _is_mine(i, owner))
    return RegionInstances(mine, used, is_baking)


@explained("find the instances")
def find(
    cloud: Cloud, region: str, *, filters: Mapping[str, Sequence[str]]
) -> tuple[Instance, ...]:
    """
    Find instances by EC2's filters, `{"client-token": [...]}`, ended ones too while EC2 remembers them; newest first.

    A fresh instance may be missing for some seconds, so nothing found proves nothing.
    """
    return _newest_first(read_instance(row, region) for row in _rows(cloud, region, filters))


@explained("read the instance")
def read(cloud: Cloud, region: str, instance_id: str) -> Instance:
    """
    Read one instance.

    Raises:
        NotFound: EC2 does not know it, not yet, or not any more (an hour after its end).
    """
    ec2: EC2Client = cloud.client("ec2", region)
    with cloud.explained(f"read instance {instance_id}"):
        reply = ec2.describe_instances(InstanceIds=[instance_id])
    rows = [row for r in reply["Reservations"] for row in r["Instances"]]
    if not rows:
        raise NotFound(f"AWS does not know {instance_id}", code="InvalidInstanceID.NotFound")
    return read_instance(rows[0], region)


@explained("read the instances")
def read_many(cloud: Cloud, region: str, ids: Sequence[str]) -> tuple[Instance, ...]:
    """
    Read instances by their ids, a hundred a call; those EC2 does not know (yet, or any more) are left out.

    A new instance is known by its id sooner than a filter shows it.
    """
    found: list[Instance] = []
    for begin in range(0, len(ids), _IDS_A_CALL):
        found += _known(cloud, region, list(ids[begin : begin + _IDS_A_CALL]))
    return tuple(found)


def console_output(cloud: Cloud, region: str, instance_id: str) -> str:
    """
    Read the console as it is now; empty while there is nothing.

    Older types give only what they wrote at boot, minutes late; AWS refuses `Latest` for them.
    """
    ec2: EC2Client = cloud.client("ec2", region)
    try:
        with cloud.explained(f"read the console of {instance_id}"):
            return str(
                ec2.get_console_output(InstanceId=instance_id, Latest=True).get("Output", "")
            )
    except AwsError as error:
        if error.code != "UnsupportedOperation":
            raise
    with cloud.explained(f"read the console of {instance_id}"):
        return str(ec2.get_console_output(InstanceId=instance_id).get("Output", ""))


def terminate(cloud: Cloud, region: str, instance_ids: Sequence[str]) -> None:
    """
    Ask AWS to end instances; they have ended once `read` says `terminated`. Repeatable.

    Raises:
        NotFound: One of them is not known (any more); then none is ended.
    """
    ec2: EC2Client = cloud.client("ec2", region)
    with cloud.explained(f"end {', '.join(instance_ids)}"):
        ec2.terminate_instances(InstanceIds=list(instance_ids))


def retag(cloud: Cloud, region: str, ids: Sequence[str], tags: Mapping[str, str]) -> None:
    """Replace tags of instances, volumes and so on."""
    ec2: EC2Client = cloud.client("ec2", region)
    with cloud.explained(f"tag {', '.join(ids)}"):
        ec2.create_tags(
            Resources=list(ids), Tags=[{"Key": k, "Value": v} for k, v in sorted(tags.items())]
        )


def read_instance(row: Mapping[str, Any], region: str) -> Instance:
    """Turn EC2's description of an instance into ours; what is missing is empty."""
    tags = {t["Key"]: t["Value"] for t in row.get("Tags", [])}
    zone = row.get("Placement", {}).get("AvailabilityZone", "")
    volumes = (m.get("Ebs", {}).get("VolumeId", "") for m in row.get("BlockDeviceMappings", []))
    return Instance(
        id=row["InstanceId"],
        name=_name(tags.get(tags_of.TAG_NAME, ""), row["InstanceId"]),
        owner=tags.get(tags_of.TAG_OWNER, ""),
        place=Place(region, zone, row["InstanceType"], _market(row)),
        state=State(row["State"]["Name"]),
        state_reason=row.get("StateReason", {}).get("Code", ""),
        address=row.get("PublicIpAddress") or "",
        private_address=row.get("PrivateIpAddress") or "",
        launched_at=row["LaunchTime"].astimezone(UTC),
        expires_at=read_moment(tags.get(tags_of.TAG_EXPIRES, "")),
        launch_id=tags.get(tags_of.TAG_LAUNCH, ""),
        environment=tags.get(tags_of.TAG_ENVIRONMENT, ""),
        course=tags.get(tags_of.TAG_COURSE, ""),
        lab=tags.get(tags_of.TAG_LAB, ""),
        image_id=row.get("ImageId", ""),
        volume_ids=tuple(sorted(v for v in volumes if v)),
        ended_at=end_in(row),
        disk_gib=disk_gib_in(tags),
        has_run_before=_has_run_before(row),
        token=row.get("ClientToken", ""),
    )


def disk_gib_in(tags: Mapping[str, str]) -> int | None:
    """Return the size of the root disk as the tag tells it; `None` where there is no such tag, or nonsense in it."""
    said = tags.get(tags_of.TAG_DISK, "")
    return int(said) if re.fullmatch("[1-9][0-9]{0,5}", said) else None


def end_in(row: Mapping[str, Any]) -> datetime | None:
    """Return when EC2 says that the last run ended; `None` while it runs, and after an end from inside, whose time EC2 does not tell."""
    found = _WHEN.search(row.get("StateTransitionReason", ""))
    return datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC) if found else None


def _has_run_before(row: Mapping[str, Any]) -> bool:
    """Whether its network interface was there well before this run: a stop keeps it, and a start moves `LaunchTime`."""
    attached = [i.get("Attachment", {}).get("AttachTime") for i in row.get("NetworkInterfaces", [])]
    return any(at and row["LaunchTime"] - at > _ONE_RUN for at in attached)


def _name(tag: str, instance_id: str) -> str:
    """Whoever may tag in a shared account chooses this text, and a folder of the user's is called by it."""
    return tag if not tag or _NAME.fullmatch(tag) else instance_id


def _rows(
    cloud: Cloud, region: str, filters: Mapping[str, Sequence[str]]
) -> Iterator[Mapping[str, Any]]:
    pages = cloud.pages(
        "ec2",
        region,
        "describe_instances",
        doing=f"list instances in {region}",
        Filters=[{"Name": k, "Values": list(v)} for k, v in filters.items()],
        # Paging moves the call into the larger of AWS's throttling buckets.
        PaginationConfig={"PageSize": 1000},
    )
    for page in pages:
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


def _known(cloud: Cloud, region: str, ids: list[str]) -> list[Instance]:
    ec2: EC2Client = cloud.client("ec2", region)
    while ids:
        try:
            with cloud.explained(f"read {len(ids)} instances in {region}"):
                reply = ec2.describe_instances(InstanceIds=ids)
        except NotFound as error:
            # EC2 refuses the whole call and names those it does not know.
            unknown = set(re.findall(r"i-[0-9a-f]+", error.detail)) & set(ids)
            if not unknown:
                raise
            ids = [i for i in ids if i not in unknown]
        else:
            rows = [row for r in reply["Reservations"] for row in r["Instances"]]
            return [read_instance(row, region) for row in rows]
    return []


def _newest_first(instances: Iterable[Instance]) -> tuple[Instance, ...]:
    return tuple(sorted(instances, key=lambda i: (i.launched_at, i.id), reverse=True))


def _is_mine(instance: Instance, owner: str) -> bool:
    return bool(instance.launch_id) and owner in ("", instance.owner)


def _market(row: Mapping[str, Any]) -> Market:
    return Market.SPOT if row.get("InstanceLifecycle") == "spot" else Market.ON_DEMAND


def _vcpus(row: Mapping[str, Any]) -> int:
    options = row.get("CpuOptions", {})
    if options.get("CoreCount") and options.get("ThreadsPerCore"):
        return int(options["CoreCount"]) * int(options["ThreadsPerCore"])
    return next((t.vcpus for t in instance_types() if t.name == row["InstanceType"]), 4)


def _root_volume(call: LaunchCall) -> dict[str, Any]:
    disk: dict[str, Any] = {
        "VolumeSize": _root_gib(call),
        "VolumeType": "gp3",
        "Encrypted": True,
        "DeleteOnTermination": True,
    }
    if call.initialization_mib_s is not None:
        disk["VolumeInitializationRate"] = call.initialization_mib_s
    return {"DeviceName": call.image.root_device, "Ebs": disk}


def _root_gib(call: LaunchCall) -> int:
    return max(call.disk_gib, call.image.root_gib)


def _reached_by(call: LaunchCall) -> dict[str, Any]:
    if call.subnet.gives_public_address:
        return {"SubnetId": call.subnet.id, "SecurityGroupIds": [call.security_group_id]}
    card = {
        "DeviceIndex": 0,
        "SubnetId": call.subnet.id,
        "Groups": [call.security_group_id],
        "AssociatePublicIpAddress": True,
        "DeleteOnTermination": True,
    }
    return {"NetworkInterfaces": [card]}


def _one_time_spot(cap: Decimal | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "SpotInstanceType": "one-time",
        "InstanceInterruptionBehavior": "terminate",
    }
    if cap is not None:
        options["MaxPrice"] = f"{cap:f}"
    return {"MarketType": "spot", "SpotOptions": options}
