"""DescribeInstances and DescribeInstanceStatus from the layer's own records, with EC2's filters and pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import births, moto_bridge, paging
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.filters import Finder, check, matches
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.instances import SimInstance
    from gpulab.sandbox.world import World


def describe_instances(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DescribeInstances."""
    check(call.params.get("Filters", []), _FILTERS)
    described = [
        (i, d)
        for i, d in _seen(world, call)
        if matches(d, call.params.get("Filters", []), _FILTERS)
    ]
    page, token = paging.page(described, call.params, largest=1000)
    grouped = groupby(page, key=lambda pair: pair[0].reservation_id)
    reservations = [
        {
            "ReservationId": id_,
            "OwnerId": call.account,
            "Groups": [],
            "Instances": [d for _, d in pairs],
        }
        for id_, pairs in grouped
    ]
    return write_result(call, {"Reservations": reservations, "NextToken": token})


def describe_instance_status(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DescribeInstanceStatus: `initializing` until the checks are through, then `ok` or `impaired`."""
    check(call.params.get("Filters", []), _STATUS_FILTERS)
    wants_all = bool(call.params.get("IncludeAllInstances"))
    statuses = [
        status(world, instance)
        for instance, _ in _seen(world, call)
        if wants_all or instance.state == "running"
    ]
    statuses = [s for s in statuses if matches(s, call.params.get("Filters", []), _STATUS_FILTERS)]
    page, token = paging.page(statuses, call.params, largest=1000, default=1000)
    return write_result(call, {"InstanceStatuses": page, "NextToken": token})


def reservation(world: World, launched: Sequence[SimInstance]) -> dict[str, Any]:
    """The answer of RunInstances."""
    return {
        "ReservationId": launched[0].reservation_id,
        "OwnerId": launched[0].account,
        "Groups": [],
        "Instances": [describe(world, instance) for instance in launched],
    }


def describe(world: World, instance: SimInstance) -> dict[str, Any]:
    """One instance as DescribeInstances shows it."""
    moto = instance.moto
    options = moto.metadata_options
    gone = instance.state == "terminated"
    public = None if instance.state in ("pending", "stopped") or gone else moto.public_ip
    groups = [{"GroupId": g.id, "GroupName": g.name} for g in births.instance_groups(instance)]
    described = {
        "InstanceId": instance.id,
        "ImageId": instance.image_id,
        "State": {"Name": instance.state, "Code": moto_bridge.state_code(instance.state)},
        "StateTransitionReason": instance.transition_reason,
        "InstanceType": instance.instance_type,
        "LaunchTime": instance.launched_at,
        "Placement": {
            "AvailabilityZone": instance.zone,
            "AvailabilityZoneId": dict(moto_bridge.zones(instance.region)).get(instance.zone),
            "GroupName": "",
            "Tenancy": "default",
        },
        "KeyName": moto.key_name,
        "AmiLaunchIndex": instance.launch_index,
        "ProductCodes": [],
        "Monitoring": {"State": moto.monitoring_state},
        "Architecture": moto.architecture,
        "RootDeviceType": "ebs",
        "RootDeviceName": moto.root_device_name,
        "VirtualizationType": "hvm",
        "Hypervisor": "xen",
        "EnaSupport": True,
        "EbsOptimized": bool(moto.ebs_optimized),
        "ClientToken": instance.params.get("ClientToken", ""),
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "BlockDeviceMappings": [] if gone else _volumes(instance),
        "NetworkInterfaces": []
        if gone
        else [_interface(n, instance, groups, public) for n in moto.nics.values()],
        "SecurityGroups": [] if gone else groups,
        "Tags": [{"Key": key, "Value": value} for key, value in instance.tags.items()],
        "MetadataOptions": {
            "State": "applied",
            "HttpTokens": options.http_tokens,
            "HttpPutResponseHopLimit": options.http_put_response_hop_limit,
            "HttpEndpoint": options.http_endpoint,
            "HttpProtocolIpv6": options.http_protocol_ipv6,
            "InstanceMetadataTags": options.instance_metadata_tags,
        },
        "PrivateDnsName": "" if gone else moto.private_dns_name,
        "PublicDnsName": (moto.public_dns_name or "") if public else "",
        "PublicIpAddress": public,
        "PrivateIpAddress": None if gone else moto.private_ip,
        "SubnetId": None if gone else moto.subnet_id,
        "VpcId": None if gone else moto.vpc_id,
    }
    if instance.state_reason[0]:
        described["StateReason"] = {
            "Code": instance.state_reason[0],
            "Message": instance.state_reason[1],
        }
    if instance.market == "spot":
        described["InstanceLifecycle"] = "spot"
    if instance.spot_request_id:
        described["SpotInstanceRequestId"] = instance.spot_request_id
    if instance.profile:
        described["IamInstanceProfile"] = {"Arn": instance.profile[0], "Id": instance.profile[1]}
    return described


def status(world: World, instance: SimInstance) -> dict[str, Any]:
    """One entry of DescribeInstanceStatus."""
    checks = "not-applicable"
    if instance.state == "running" and instance.running_at is not None:
        done = world.now() >= instance.running_at + (
            world.rules.delays.status_checks if world.rules.transitions else timedelta(0)
        )
        checks = "impaired" if instance.is_impaired else "ok" if done else "initializing"
    result = {"impaired": "failed", "ok": "passed"}.get(checks, checks)
    details = [{"Name": "reachability", "Status": result}] if instance.state == "running" else []
    system = "ok" if checks == "impaired" else checks
    passed = (
        [{"Name": "reachability", "Status": "passed" if system == "ok" else result}]
        if details
        else []
    )
    return {
        "InstanceId": instance.id,
        "AvailabilityZone": instance.zone,
        "InstanceState": {"Name": instance.state, "Code": moto_bridge.state_code(instance.state)},
        "InstanceStatus": {"Status": checks, "Details": details},
        "SystemStatus": {"Status": system, "Details": passed},
        "Events": [],
        "Tags": [{"Key": key, "Value": value} for key, value in instance.tags.items()],
    }


def _seen(world: World, call: Call) -> list[tuple[SimInstance, dict[str, Any]]]:
    from gpulab.sandbox.instances import check_visible, ids_in, is_visible

    ids = ids_in(call.params)
    if ids and call.params.get("MaxResults"):
        raise Refusal(
            "InvalidParameterCombination",
            "The parameter instancesSet cannot be used with the parameter maxResults",
        )
    check_visible(world, call, ids)
    return [
        (instance, describe(world, instance))
        for instance in list(world.instances_by_id.values())
        if is_visible(world, call, instance) and (not ids or instance.id in ids)
    ]


def _volumes(instance: SimInstance) -> list[dict[str, Any]]:
    return [
        {
            "DeviceName": device,
            "Ebs": {
                "VolumeId": block.volume_id,
                "Status": "attached",
                "AttachTime": block.attach_time,
                "DeleteOnTermination": bool(block.delete_on_termination),
            },
        }
        for device, block in instance.moto.get_block_device_mapping
    ]


def _interface(
    interface: Any, instance: SimInstance, groups: list[dict[str, str]], public: str | None
) -> dict[str, Any]:
    address: dict[str, Any] = {"PrivateIpAddress": interface.private_ip_address, "Primary": True}
    described = {
        "NetworkInterfaceId": interface.id,
        "SubnetId": interface.subnet.id,
        "VpcId": interface.subnet.vpc_id,
        "OwnerId": instance.account,
        "Status": "in-use",
        "MacAddress": interface.mac_address,
        "PrivateIpAddress": interface.private_ip_address,
        "SourceDestCheck": True,
        "Groups": groups,
        "InterfaceType": "interface",
        "Description": "",
        "Attachment": {
            "AttachmentId": interface.attachment_id,
            "AttachTime": instance.created_at,
            "DeviceIndex": interface.device_index,
            "DeleteOnTermination": True,
            "Status": "attached",
        },
        "PrivateIpAddresses": [address],
    }
    if public:
        described["Association"] = address["Association"] = {
            "PublicIp": public,
            "IpOwnerId": "amazon",
        }
    return described


_FILTERS: Mapping[str, Finder] = {
    "architecture": "Architecture",
    "availability-zone": "Placement.AvailabilityZone",
    "block-device-mapping.device-name": "BlockDeviceMappings.DeviceName",
    "block-device-mapping.volume-id": "BlockDeviceMappings.Ebs.VolumeId",
    "block-device-mapping.delete-on-termination": "BlockDeviceMappings.Ebs.DeleteOnTermination",
    "client-token": "ClientToken",
    "iam-instance-profile.arn": "IamInstanceProfile.Arn",
    "iam-instance-profile.id": "IamInstanceProfile.Id",
    "image-id": "ImageId",
    "instance-id": "InstanceId",
    "instance-lifecycle": "InstanceLifecycle",
    "instance-state-code": "State.Code",
    "instance-state-name": "State.Name",
    "instance-type": "InstanceType",
    "instance.group-id": "SecurityGroups.GroupId",
    "instance.group-name": "SecurityGroups.GroupName",
    "group-id": "SecurityGroups.GroupId",
    "group-name": "SecurityGroups.GroupName",
    "ip-address": "PublicIpAddress",
    "key-name": "KeyName",
    "launch-time": "LaunchTime",
    "metadata-options.http-endpoint": "MetadataOptions.HttpEndpoint",
    "metadata-options.http-put-response-hop-limit": "MetadataOptions.HttpPutResponseHopLimit",
    "metadata-options.http-tokens": "MetadataOptions.HttpTokens",
    "metadata-options.instance-metadata-tags": "MetadataOptions.InstanceMetadataTags",
    "network-interface.network-interface-id": "NetworkInterfaces.NetworkInterfaceId",
    "network-interface.subnet-id": "NetworkInterfaces.SubnetId",
    "network-interface.group-id": "NetworkInterfaces.Groups.GroupId",
    "owner-id": "NetworkInterfaces.OwnerId",
    "private-ip-address": "PrivateIpAddress",
    "root-device-type": "RootDeviceType",
    "spot-instance-request-id": "SpotInstanceRequestId",
    "state-reason-code": "StateReason.Code",
    "subnet-id": "SubnetId",
    "tenancy": "Placement.Tenancy",
    "vpc-id": "VpcId",
}

_STATUS_FILTERS: Mapping[str, Finder] = {
    "availability-zone": "AvailabilityZone",
    "instance-state-code": "InstanceState.Code",
    "instance-state-name": "InstanceState.Name",
    "instance-status.status": "InstanceStatus.Status",
    "instance-status.reachability": "InstanceStatus.Details.Status",
    "system-status.status": "SystemStatus.Status",
    "system-status.reachability": "SystemStatus.Details.Status",
}

OPERATIONS: Mapping[str, Any] = {
    "DescribeInstances": describe_instances,
    "DescribeInstanceStatus": describe_instance_status,
}
