"""R19: what a default VPC has, and what EC2 checks for groups, volumes and addresses before it acts."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import births, moto_bridge
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.wire import with_params, write_result

if TYPE_CHECKING:
    from gpulab.sandbox.instances import SimInstance
    from gpulab.sandbox.world import World


def delete_security_group(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DeleteSecurityGroup: refused while an instance or another group uses it."""
    backend = moto_bridge.ec2(call.account, call.region)
    group = moto_bridge.groups(backend).get(str(call.params.get("GroupId", "")))
    if group is not None:
        if group.name == "default":
            raise Refusal(
                "CannotDelete",
                f'the specified group: "{group.id}" name: "default" cannot be deleted by a user',
            )
        if _is_used(world, call, group.id):
            raise Refusal("DependencyViolation", f"resource {group.id} has a dependent object")
    return forward(call)


def authorize_security_group_ingress(world: World, call: Call, forward: Forward) -> Answer:
    """Answer AuthorizeSecurityGroupIngress; a range is kept as EC2 keeps it, 1.2.3.4/24 as 1.2.3.0/24."""
    params = {**call.params}
    if params.get("CidrIp"):
        params["CidrIp"] = normal_cidr(params["CidrIp"])
    params["IpPermissions"] = [
        {**permission, "IpRanges": [_normal(r, "CidrIp") for r in permission.get("IpRanges", [])]}
        for permission in params.get("IpPermissions", [])
    ]
    if not params["IpPermissions"]:
        params.pop("IpPermissions")
    return forward(with_params(call, params))


def normal_cidr(cidr: str) -> str:
    """
    A range without the bits its mask takes away.

    Raises:
        Refusal: It is no range.
    """
    try:
        return str(ipaddress.ip_network(cidr, strict=False))
    except ValueError:
        raise Refusal("InvalidParameterValue", f"CIDR block {cidr} is malformed") from None


def create_volume(world: World, call: Call, forward: Forward) -> Answer:
    """Answer CreateVolume; R1: the same token makes one volume."""
    backend = moto_bridge.ec2(call.account, call.region)
    zone = str(call.params.get("AvailabilityZone", ""))
    known = world.tokens.recall(call, zone) if world.rules.tokens else None
    if known is not None:
        volume = moto_bridge.volumes(backend).get(known)
        if volume is None:
            raise Refusal("InvalidVolume.NotFound", f"The volume '{known}' does not exist.")
        return write_result(call, _describe(backend, volume))
    before = set(moto_bridge.volumes(backend))
    answer = forward(call)
    for made in set(moto_bridge.volumes(backend)) - before if answer.ok else ():
        world.tokens.remember(call, zone, made)
    return answer


def attach_volume(world: World, call: Call, forward: Forward) -> Answer:
    """Answer AttachVolume: same zone, a volume that is free, a device that is free, an instance that is up or stopped."""
    instance = _instance(world, call)
    backend = instance.backend
    id_, device = str(call.params.get("VolumeId", "")), str(call.params.get("Device", ""))
    volume = moto_bridge.volumes(backend).get(id_)
    if volume is None:
        raise Refusal("InvalidVolume.NotFound", f"The volume '{id_}' does not exist.")
    if volume.attachment is not None:
        raise Refusal("VolumeInUse", f"{id_} is already attached to an instance")
    if volume.availability_zone != instance.zone:
        raise Refusal(
            "InvalidVolume.ZoneMismatch",
            f"The volume '{id_}' is not in the same availability zone as instance '{instance.id}'",
        )
    if instance.state not in ("running", "stopped"):
        raise Refusal("IncorrectState", f"Instance '{instance.id}' is not 'running' or 'stopped'.")
    if device in dict(instance.moto.get_block_device_mapping):
        raise Refusal(
            "InvalidParameterValue",
            f"Invalid value '{device}' for unixDevice. Attachment point {device} is already in use",
        )
    answer = forward(call)
    if answer.ok and instance.machine is not None:
        block = dict(instance.moto.get_block_device_mapping)[device]
        instance.machine.attach(births.disk_of(instance, device, block))
    return answer


def detach_volume(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DetachVolume, which needs no instance id."""
    backend = moto_bridge.ec2(call.account, call.region)
    id_ = str(call.params.get("VolumeId", ""))
    volume = moto_bridge.volumes(backend).get(id_)
    if volume is None:
        raise Refusal("InvalidVolume.NotFound", f"The volume '{id_}' does not exist.")
    if volume.attachment is None:
        raise Refusal("IncorrectState", f"Volume '{id_}' is in the 'available' state.")
    instance_id = str(call.params.get("InstanceId") or volume.attachment.instance.id)
    if instance_id != volume.attachment.instance.id:
        raise Refusal(
            "InvalidAttachment.NotFound",
            f"The volume '{id_}' is not attached to instance '{instance_id}'",
        )
    instance = world.instances_by_id.get(instance_id)
    device = volume.attachment.device
    if instance and instance.state == "running" and device == instance.moto.root_device_name:
        raise Refusal(
            "OperationNotPermitted",
            f"Unable to detach root volume '{id_}' from instance '{instance_id}'",
        )
    answer = forward(
        with_params(call, {**call.params, "InstanceId": instance_id, "Device": device})
    )
    if answer.ok and instance is not None and instance.machine is not None:
        instance.machine.detach(id_)
    return answer


def delete_volume(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DeleteVolume, and let the machines forget the volume."""
    answer = forward(call)
    if answer.ok and world.machines is not None:
        world.machines.delete_volume(str(call.params.get("VolumeId", "")))
    return answer


def allocate_address(world: World, call: Call, forward: Forward) -> Answer:
    """Answer AllocateAddress within the quota of Elastic IPs."""
    backend = moto_bridge.ec2(call.account, call.region)
    limit = world.quotas.limit("L-0263D0A3", call.account, call.region)
    if world.rules.quotas and len(moto_bridge.addresses(backend)) >= limit:
        raise Refusal("AddressLimitExceeded", "The maximum number of addresses has been reached.")
    return forward(call)


def describe_snapshots(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DescribeSnapshots with the owners a caller asks for; moto shows every image's snapshot as well."""
    owners = [call.account if o == "self" else o for o in call.params.get("OwnerIds", [])]
    if not owners:
        return forward(call)
    wanted = [*call.params.get("Filters", []), {"Name": "owner-id", "Values": owners}]
    params = {k: v for k, v in call.params.items() if k != "OwnerIds"}
    return forward(with_params(call, {**params, "Filters": wanted}))


def _is_used(world: World, call: Call, group_id: str) -> bool:
    here = (call.account, call.region)
    users = (
        instance
        for instance in world.instances_by_id.values()
        if (instance.account, instance.region) == here and instance.state != "terminated"
    )
    if any(g.id == group_id for user in users for g in births.instance_groups(user)):
        return True
    backend = moto_bridge.ec2(call.account, call.region)
    return any(
        group_id in moto_bridge.sources_of(other)
        for other in moto_bridge.groups(backend).values()
        if other.id != group_id
    )


def _instance(world: World, call: Call) -> SimInstance:
    from gpulab.sandbox.instances import by_ids

    return by_ids(world, call)[0]


def _normal(range_: Mapping[str, str], name: str) -> dict[str, str]:
    return {**range_, name: normal_cidr(range_[name])}


def _describe(backend: Any, volume: Any) -> dict[str, Any]:
    return {
        "VolumeId": volume.id,
        "Size": volume.size,
        "VolumeType": volume.volume_type,
        "AvailabilityZone": volume.availability_zone,
        "State": volume.status,
        "CreateTime": volume.create_time,
        "Encrypted": volume.encrypted,
        "SnapshotId": volume.snapshot_id or "",
        "Tags": [
            {"Key": k, "Value": v} for k, v in moto_bridge.tags_of(backend, volume.id).items()
        ],
    }


OPERATIONS: Mapping[str, Any] = {
    "DeleteSecurityGroup": delete_security_group,
    "AuthorizeSecurityGroupIngress": authorize_security_group_ingress,
    "CreateVolume": create_volume,
    "AttachVolume": attach_volume,
    "DescribeSnapshots": describe_snapshots,
    "DetachVolume": detach_volume,
    "DeleteVolume": delete_volume,
    "AllocateAddress": allocate_address,
}
