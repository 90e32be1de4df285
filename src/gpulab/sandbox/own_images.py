"""
R23: images of one's own: CreateImage, CopyImage and what they are while they are made. moto makes them at once, all of 15 GB, and
tags no snapshots.

Sources:
    https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CreateImage.html
    https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_CopyImage.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import moto_bridge
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.wire import with_params, write_result

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

_NAME = re.compile(r"[A-Za-z0-9()\[\] ./'@_-]{3,128}")


def create_image(world: World, call: Call, forward: Forward) -> Answer:
    """Answer CreateImage: `pending` for some minutes, as large as the instance's root volume, its snapshot tagged and owned."""
    instance = world.instances_by_id.get(str(call.params.get("InstanceId", "")))
    if instance is None or instance.account != call.account:
        return forward(call)
    if instance.state not in ("running", "stopped", "stopping"):
        raise Refusal(
            "IncorrectInstanceState", f"Instance {instance.id} is not in a state to be imaged"
        )
    _check_name(call)
    _check_tags(call)
    params = {k: v for k, v in call.params.items() if k not in ("TagSpecifications", "NoReboot")}
    answer = forward(with_params(call, params))
    volume = moto_bridge.root_volume(instance.moto)
    _finish(world, call, answer, root_gib=volume.size, is_encrypted=bool(volume.encrypted))
    return answer


def copy_image(world: World, call: Call, forward: Forward) -> Answer:
    """Answer CopyImage: the same client token is the same copy; tags come along only when they are asked for."""
    _let_time_work(world)
    source_region = str(call.params.get("SourceRegion", ""))
    source_id = str(call.params.get("SourceImageId", ""))
    source = moto_bridge.image(moto_bridge.ec2(call.account, source_region), source_id)
    if source is None:
        raise Refusal("InvalidAMIID.NotFound", f"The image id '[{source_id}]' does not exist")
    if source.state != "available":
        raise Refusal(
            "InvalidAMIID.Unavailable", f"The image id '[{source_id}]' is no longer available"
        )
    token = str(call.params.get("ClientToken") or "")
    key = (call.account, call.region, token)
    if token and key in world.image_copies:
        return write_result(call, {"ImageId": world.image_copies[key]})
    _check_name(call)
    _check_tags(call)
    kept = ("SourceImageId", "SourceRegion", "Name", "Description")
    answer = forward(with_params(call, {k: v for k, v in call.params.items() if k in kept}))
    ebs = source.block_device_mappings[0]["Ebs"]
    is_encrypted = bool(call.params.get("Encrypted")) or ebs["Encrypted"]
    _finish(world, call, answer, root_gib=ebs["VolumeSize"], is_encrypted=is_encrypted)
    if call.params.get("CopyImageTags"):
        tags = moto_bridge.tags_of(moto_bridge.ec2(call.account, source_region), source_id)
        moto_bridge.tag(moto_bridge.ec2(call.account, call.region), _id(answer), tags)
    if token:
        world.image_copies[key] = _id(answer)
    return answer


def describe(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DescribeImages and DescribeSnapshots after time has done its work."""
    _let_time_work(world)
    if call.operation == "DescribeSnapshots":
        from gpulab.sandbox.vpc import describe_snapshots

        return describe_snapshots(world, call, forward)
    return forward(call)


def _let_time_work(world: World) -> None:
    now = _naive(world.now())
    for image, ready_at in list(world.images_in_work):
        if ready_at <= now:
            image.state, image.ebs_snapshot.status = "available", "completed"
            world.images_in_work.remove((image, ready_at))


def _finish(world: World, call: Call, answer: Answer, *, root_gib: int, is_encrypted: bool) -> None:
    backend = moto_bridge.ec2(call.account, call.region)
    made = moto_bridge.own_image(backend, _id(answer), root_gib=root_gib, is_encrypted=is_encrypted)
    now = _naive(world.now())
    made.creation_date = made.ebs_snapshot.start_time = now
    if world.rules.transitions:
        made.state, made.ebs_snapshot.status = "pending", "pending"
        world.images_in_work.append((made, now + world.rules.delays.image))
    for kind, tags in _tags(call):
        moto_bridge.tag(backend, made.id if kind == "image" else made.ebs_snapshot.id, tags)


def _check_name(call: Call) -> None:
    name = str(call.params.get("Name", ""))
    if not _NAME.fullmatch(name):
        raise Refusal(
            "InvalidAMIName.Malformed", f"AMI names must be between 3 and 128 characters: {name}"
        )
    for image in moto_bridge.images(moto_bridge.ec2(call.account, call.region)):
        if image.name == name and image.owner_id == call.account:
            raise Refusal(
                "InvalidAMIName.Duplicate", f"AMI name {name} is already in use by AMI {image.id}"
            )


def _check_tags(call: Call) -> None:
    for spec in call.params.get("TagSpecifications", []):
        if spec.get("ResourceType") not in ("image", "snapshot"):
            kind = spec.get("ResourceType")
            raise Refusal(
                "InvalidParameterValue",
                f"'{kind}' is not a valid taggable resource type for this operation.",
            )


def _tags(call: Call) -> Iterable[tuple[str, Mapping[str, str]]]:
    for spec in call.params.get("TagSpecifications", []):
        yield (
            spec["ResourceType"],
            {tag["Key"]: tag.get("Value", "") for tag in spec.get("Tags", [])},
        )


def _id(answer: Answer) -> str:
    found = re.search(rb"<imageId>([^<]+)</imageId>", answer.body)
    assert found is not None
    return found[1].decode()


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)


OPERATIONS: Mapping[str, Any] = {
    "CreateImage": create_image,
    "CopyImage": copy_image,
    "DescribeImages": describe,
    "DescribeSnapshots": describe,
}
