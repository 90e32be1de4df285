"""R9, R12 and R3b: values and combinations that EC2 refuses and moto accepts or drops."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import launching, moto_bridge, moto_services
from gpulab.sandbox.calls import Call, Refusal

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

#: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/user-data.html
USER_DATA_BYTES = 16_384

_TAGGABLE = frozenset(
    {
        "instance",
        "volume",
        "network-interface",
        "spot-instances-request",
        "elastic-gpu",
    }
)


def check_launch(world: World, call: Call, params: Mapping[str, Any]) -> None:
    """
    Check a RunInstances call, launch template merged in.

    Raises:
        Refusal: As EC2 would put it.
    """
    if world.rules.user_data:
        check_user_data(params.get("UserData"))
    if not world.rules.validation:
        return
    backend = moto_bridge.ec2(call.account, call.region)
    if not params.get("ImageId"):
        raise Refusal("MissingParameter", "The request must contain the parameter ImageId")
    _check_image(world, call, str(params["ImageId"]))
    check_instance_type(str(params.get("InstanceType", "")))
    _check_place(call, params, backend)
    _check_groups(world, backend, params)
    _check_key_pair(backend, params.get("KeyName"))
    _check_profile(world, call, params.get("IamInstanceProfile"))
    _check_tags(params.get("TagSpecifications", []))
    _check_market(world, call, params)
    _check_metadata(params.get("MetadataOptions", {}))
    _check_volumes(world, call, params)
    if params.get("HibernationOptions", {}).get("Configured"):
        _check_hibernation(str(params.get("InstanceType", "")))


def check_user_data(encoded: str | None) -> None:
    """R9: refuse user data over 16,384 bytes before base64, or that is not base64."""
    if not encoded:
        return
    try:
        raw = base64.b64decode(str(encoded), validate=False)
    except binascii.Error:
        raise Refusal("InvalidParameterValue", "Invalid BASE64 encoding of user data.") from None
    if len(raw) > USER_DATA_BYTES:
        raise Refusal("InvalidParameterValue", f"User data is limited to {USER_DATA_BYTES} bytes")


def check_instance_type(name: str) -> None:
    """Refuse a type EC2 does not have, such as p2.xlarge."""
    if name and moto_bridge.instance_type(name) is None:
        raise Refusal("InvalidParameterValue", f"Invalid value '{name}' for InstanceType.")


def check_shutdown_behavior(behavior: str, market: str) -> None:
    """Refuse `stop` for spot (ansible/ansible#63246), and anything but stop and terminate."""
    if behavior not in ("stop", "terminate"):
        raise Refusal(
            "InvalidParameterValue",
            f"Value ({behavior}) for parameter InstanceInitiatedShutdownBehavior is invalid.",
        )
    if market == "spot" and behavior == "stop":
        raise Refusal(
            "InvalidParameterCombination",
            "The attribute instanceInitiatedShutdownBehavior cannot be 'stop' for a Spot Instance request.",
        )


def _check_image(world: World, call: Call, image_id: str) -> None:
    if image_id.startswith("resolve:ssm:"):
        world.images.resolve(call.account, call.region, image_id)
        return
    if not re.fullmatch(r"ami-([0-9a-f]{8}|[0-9a-f]{17})", image_id):
        raise Refusal("InvalidAMIID.Malformed", f'Invalid id: "{image_id}" (expecting "ami-...")')
    if moto_bridge.image(moto_bridge.ec2(call.account, call.region), image_id) is None:
        raise Refusal("InvalidAMIID.NotFound", f"The image id '[{image_id}]' does not exist")


def _check_place(call: Call, params: Mapping[str, Any], backend: Any) -> None:
    zone = params.get("Placement", {}).get("AvailabilityZone")
    known = [name for name, _ in moto_bridge.zones(call.region)]
    if zone and zone not in known:
        raise Refusal("InvalidParameterValue", f"Invalid availability zone: [{zone}]")
    subnet = launching.subnet_in(params)
    if not subnet:
        return
    if not re.fullmatch(r"subnet-([0-9a-f]{8}|[0-9a-f]{17})", subnet):
        raise Refusal(
            "InvalidSubnetID.Malformed", f'Invalid id: "{subnet}" (expecting "subnet-...")'
        )
    where = moto_bridge.zone_of_subnet(backend, subnet)
    if not where:
        raise Refusal("InvalidSubnetID.NotFound", f"The subnet ID '{subnet}' does not exist")
    if zone and zone != where:
        raise Refusal(
            "InvalidParameterValue",
            "The specified subnet is not in the specified Availability Zone.",
        )


def _check_groups(world: World, backend: Any, params: Mapping[str, Any]) -> None:
    ids = list(params.get("SecurityGroupIds", []))
    for interface in params.get("NetworkInterfaces", []):
        ids += interface.get("Groups", [])
    if params.get("NetworkInterfaces") and (
        params.get("SecurityGroupIds") or params.get("SubnetId")
    ):
        raise Refusal(
            "InvalidParameterCombination",
            "Network interfaces and an instance-level subnet ID or security groups may not be specified on the same request",
        )
    known = moto_bridge.groups(backend)
    for id_ in ids:
        if not re.fullmatch(r"sg-([0-9a-f]{8}|[0-9a-f]{17})", id_):
            raise Refusal("InvalidGroupId.Malformed", f'Invalid id: "{id_}" (expecting "sg-...")')
        if id_ not in known or not world.consistency.shows(id_):
            raise Refusal("InvalidGroup.NotFound", f"The security group '{id_}' does not exist")


def _check_key_pair(backend: Any, name: str | None) -> None:
    if name and not moto_bridge.has_key_pair(backend, name):
        raise Refusal("InvalidKeyPair.NotFound", f"The key pair '{name}' does not exist")


def _check_profile(world: World, call: Call, profile: Mapping[str, str] | None) -> None:
    if not profile:
        return
    name = profile.get("Name") or profile.get("Arn") or ""
    where = "iamInstanceProfile.name" if profile.get("Name") else "iamInstanceProfile.arn"
    found = moto_services.role_of_profile(call.account, name)
    if found is None or not world.consistency.shows(found[0]):
        raise Refusal(
            "InvalidParameterValue",
            f"Value ({name}) for parameter {where} is invalid. Invalid IAM Instance Profile name",
        )
    world.credentials.check(call, "iam:PassRole", resource=found[2])


def _check_tags(specifications: list[Mapping[str, Any]]) -> None:
    for specification in specifications:
        type_ = specification.get("ResourceType", "")
        if type_ not in _TAGGABLE:
            raise Refusal(
                "InvalidParameterValue",
                f"'{type_}' is not a valid taggable resource type for this operation.",
            )
        tags = specification.get("Tags", [])
        if len(tags) > 50:
            raise Refusal(
                "TagLimitExceeded", "The maximum number of Tags for a resource has been reached."
            )
        for tag in tags:
            check_tag(str(tag.get("Key", "")), str(tag.get("Value", "")))


def check_tag(key: str, value: str) -> None:
    """Refuse a tag that EC2 does not take: no key, 128 and 256 characters at most, no `aws:` in front."""
    if not 1 <= len(key) <= 128:
        raise Refusal("InvalidParameterValue", "Tag key must be between 1 and 128 characters long.")
    if len(value) > 256:
        raise Refusal(
            "InvalidParameterValue", "Tag value exceeds the maximum length of 256 characters."
        )
    if key.lower().startswith("aws:"):
        raise Refusal(
            "InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use."
        )


def _check_market(world: World, call: Call, params: Mapping[str, Any]) -> None:
    market = params.get("InstanceMarketOptions", {}).get("MarketType")
    if market not in (None, "spot", "capacity-block"):
        raise Refusal("InvalidParameterValue", f"The market type '{market}' is invalid.")
    behavior = params.get("InstanceInitiatedShutdownBehavior")
    if behavior:
        check_shutdown_behavior(behavior, market or "on-demand")
    if market == "spot":
        _check_spot(world, call, params, params["InstanceMarketOptions"].get("SpotOptions", {}))


def _check_spot(
    world: World, call: Call, params: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    type_ = options.get("SpotInstanceType", "one-time")
    interruption = options.get("InstanceInterruptionBehavior")
    if type_ not in ("one-time", "persistent"):
        raise Refusal("InvalidParameterValue", f"The spot instance type '{type_}' is invalid.")
    # harmony-one/harmony-ops#285 and pahud/cdk-spot-one#206
    if (type_ == "one-time" and interruption in ("stop", "hibernate")) or (
        type_ == "persistent" and interruption == "terminate"
    ):
        raise Refusal(
            "InvalidParameterCombination",
            f"The request with type '{type_}' is not supported when instanceInterruptionBehavior is set to '{interruption}'.",
        )
    valid_until = options.get("ValidUntil")
    if valid_until is not None:
        if type_ == "one-time":
            raise Refusal(
                "InvalidParameterCombination",
                "The parameter validUntil is not supported for one-time requests made with RunInstances.",
            )
        if _aware(valid_until) <= world.now():
            raise Refusal("InvalidTime", "The time 'validUntil' must be in the future.")
    if (cap := options.get("MaxPrice")) is not None:
        _check_cap(world, call, params, str(cap))


def _check_cap(world: World, call: Call, params: Mapping[str, Any], cap: str) -> None:
    try:
        usd = Decimal(cap)
    except InvalidOperation:
        usd = Decimal(0)
    # https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_SpotMarketOptions.html
    if not usd.is_finite() or usd <= Decimal("0.001"):
        raise Refusal("InvalidParameterValue", f"Invalid value '{cap}' for parameter MaxPrice.")
    backend = moto_bridge.ec2(call.account, call.region)
    instance_type = str(params.get("InstanceType", ""))
    zone = launching.zone_in(backend, params)
    zones = [zone] if zone else sorted(moto_bridge.offered_in(instance_type, call.region))
    prices = [world.prices.price(instance_type, z, world.now()) for z in zones]
    if prices and usd < min(prices):
        raise Refusal(
            "SpotMaxPriceTooLow",
            f"Your Spot request price of {usd} is lower than the minimum required Spot request fulfillment price of {min(prices)}.",
        )


def _check_metadata(options: Mapping[str, Any]) -> None:
    hops = options.get("HttpPutResponseHopLimit")
    if hops is not None and not 1 <= int(hops) <= 64:
        raise Refusal(
            "InvalidParameterValue",
            f"Value ({hops}) for parameter httpPutResponseHopLimit is invalid. It must be between 1 and 64.",
        )
    if options.get("HttpTokens") not in (None, "optional", "required"):
        raise Refusal(
            "InvalidParameterValue", f"Invalid value for HttpTokens: {options['HttpTokens']}"
        )


def _check_volumes(world: World, call: Call, params: Mapping[str, Any]) -> None:
    image_id = world.images.resolve(call.account, call.region, str(params["ImageId"]))
    image = moto_bridge.image(moto_bridge.ec2(call.account, call.region), image_id)
    root = image.block_device_mappings[0] if image else None
    seen = set()
    for mapping in params.get("BlockDeviceMappings", []):
        name, ebs = mapping.get("DeviceName", ""), mapping.get("Ebs") or {}
        if name in seen:
            raise Refusal(
                "InvalidBlockDeviceMapping",
                f"The device '{name}' is used in more than one block-device mapping",
            )
        seen.add(name)
        size = ebs.get("VolumeSize")
        if root and name == root["DeviceName"] and size is not None:
            least, snapshot = root["Ebs"]["VolumeSize"], root["Ebs"]["SnapshotId"]
            if int(size) < least:
                raise Refusal(
                    "InvalidBlockDeviceMapping",
                    f"Volume of size {size}GB is smaller than snapshot '{snapshot}', expect size>= {least}GB",
                )
        elif (
            ebs
            and size is None
            and not ebs.get("SnapshotId")
            and not (root and name == root["DeviceName"])
        ):
            raise Refusal(
                "MissingParameter", "The request must contain the parameter size or snapshotId"
            )
        _check_volume_figures(ebs)


def _check_volume_figures(ebs: Mapping[str, Any]) -> None:
    rate = ebs.get("VolumeInitializationRate")
    if rate is not None and not 100 <= int(rate) <= 300:
        raise Refusal(
            "InvalidParameterValue",
            f"Value ({rate}) for parameter VolumeInitializationRate is invalid. It must be between 100 and 300.",
        )
    type_, iops = ebs.get("VolumeType", "gp3"), ebs.get("Iops")
    if type_ not in ("gp2", "gp3", "io1", "io2", "st1", "sc1", "standard"):
        raise Refusal("InvalidParameterValue", f"Invalid volume type: {type_}")
    if iops is not None and type_ in ("gp2", "st1", "sc1", "standard"):
        raise Refusal(
            "InvalidParameterCombination",
            f"The parameter iops is not supported for {type_} volumes.",
        )
    if ebs.get("KmsKeyId") and ebs.get("Encrypted") is False:
        raise Refusal(
            "InvalidParameterDependency",
            "The parameter KmsKeyId requires the parameter Encrypted to be set.",
        )
    size = ebs.get("VolumeSize")
    if size is not None and not 1 <= int(size) <= 65_536:
        raise Refusal(
            "InvalidParameterValue",
            f"Volume size {size} is invalid. It must be between 1 and 65536.",
        )


def _check_hibernation(instance_type: str) -> None:
    found = moto_bridge.instance_type(instance_type) or {}
    if not found.get("HibernationSupported"):
        raise Refusal(
            "UnsupportedHibernationConfiguration",
            f"Hibernation is not supported for the instance type '{instance_type}'.",
        )


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
