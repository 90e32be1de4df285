"""What happens between a launch request and a pending instance: template, place, quota, capacity, moto, spot request, machine."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import (
    capacity,
    catalogue,
    describing,
    lifecycle,
    moto_bridge,
    moto_services,
    quotas,
    spot_requests,
    validation,
)
from gpulab.sandbox.calls import Call, Forward, Refusal
from gpulab.sandbox.console import new_host_key
from gpulab.sandbox.faults import is_dry_run
from gpulab.sandbox.wire import error_code, with_params

if TYPE_CHECKING:
    from gpulab.sandbox.instances import SimInstance
    from gpulab.sandbox.world import World


@dataclass(frozen=True)
class Wish:
    """
    A launch request, understood.

    Attributes:
        params: With the launch template merged in; the call's own values win.
        named_zone: The zone the call names, itself or by its subnet; empty when EC2 may choose.
    """

    params: Mapping[str, Any]
    instance_type: str
    market: str
    named_zone: str
    at_least: int
    at_most: int

    @property
    def spot_options(self) -> Mapping[str, Any]:
        """`InstanceMarketOptions.SpotOptions`; empty when none were given."""
        options: Mapping[str, Any] = self.params.get("InstanceMarketOptions", {}).get(
            "SpotOptions", {}
        )
        return options


def launch(world: World, call: Call, forward: Forward) -> dict[str, Any]:
    """
    Carry out a RunInstances call.

    Returns:
        The reservation as RunInstances answers it: instances `pending`, without a public address.

    Raises:
        Refusal: In EC2's order: values, token, account plan, quota, capacity.
    """
    wish = read_wish(world, call)
    validation.check_launch(world, call, wish.params)
    if is_dry_run(call.params):
        raise Refusal("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
    if world.rules.tokens and (known := world.tokens.recall(call, wish.named_zone)):
        return _again(world, known)
    launched = launch_wish(world, call, wish, forward)
    world.tokens.remember(call, wish.named_zone, launched[0].reservation_id)
    return describing.reservation(world, launched)


def launch_wish(
    world: World, call: Call, wish: Wish, forward: Forward, *, request_id: str = ""
) -> list[SimInstance]:
    """Launch what is wished for, or refuse it; `request_id` names the spot request that asks, when there is one already."""
    _check_plan(world, call, wish.instance_type)
    zone = wish.named_zone or _choose_zone(world, call, wish)
    count = _how_many(world, call, wish, zone)
    take_capacity(world, wish.instance_type, zone, call.region, count)
    params = _for_moto(world, call, wish, zone, count)
    answer = forward(with_params(call, params))
    if not answer.ok:
        for _ in range(count):
            world.capacity.give_back(wish.instance_type, zone)
        raise Refusal(error_code(answer), _message(answer.body), status=answer.status)
    launched = _adopt(world, call, wish, zone, answer.body)
    for instance in launched:
        if wish.market == "spot" and world.rules.spot_requests:
            spot_requests.attach(world, call, wish, instance, request_id=request_id)
        lifecycle.begin(world, instance)
    world.books.observe(call.account, call.region)
    return launched


def read_wish(world: World, call: Call) -> Wish:
    """
    Understand a launch request.

    Raises:
        Refusal: The template, the subnet or a parameter image is unknown.
    """
    backend = moto_bridge.ec2(call.account, call.region)
    params = merge_template(backend, call.params)
    market = params.get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
    return Wish(
        params=params,
        instance_type=params.get("InstanceType", "m1.small"),
        market=market,
        named_zone=zone_in(backend, params),
        at_least=int(params.get("MinCount", 1)),
        at_most=int(params.get("MaxCount", 1)),
    )


def merge_template(backend: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the launch template's data under them; without the template itself."""
    merged = dict(params)
    template = merged.pop("LaunchTemplate", None)
    if not template:
        return merged
    data = {**moto_bridge.template_data(backend, template)}
    if "UserData" in data:
        data["UserData"] = str(data["UserData"])
    return {**data, **merged}


def zone_in(backend: Any, params: Mapping[str, Any]) -> str:
    """The zone that parameters name, themselves or by a subnet; empty when they name none."""
    if zone := params.get("Placement", {}).get("AvailabilityZone") or params.get(
        "AvailabilityZone"
    ):
        return str(zone)
    subnet = subnet_in(params)
    return moto_bridge.zone_of_subnet(backend, subnet) if subnet else ""


def subnet_in(params: Mapping[str, Any]) -> str:
    """The subnet that parameters name; empty when they name none."""
    if subnet := params.get("SubnetId"):
        return str(subnet)
    return next(
        (str(n["SubnetId"]) for n in params.get("NetworkInterfaces", []) if n.get("SubnetId")), ""
    )


def take_capacity(world: World, instance_type: str, zone: str, region: str, count: int) -> None:
    """
    Use up places of a zone.

    Raises:
        Refusal: The zone is full, or does not have the type.
    """
    if not world.rules.capacity:
        return
    others = world.capacity.others(instance_type, zone, region)
    if zone not in moto_bridge.offered_in(instance_type, region):
        raise capacity.not_offered(instance_type, zone, others)
    if not world.capacity.has(instance_type, zone, count):
        raise capacity.no_capacity(instance_type, zone, others)
    world.capacity.take(instance_type, zone, count)


def _again(world: World, reservation_id: str) -> dict[str, Any]:
    launched = [i for i in world.instances_by_id.values() if i.reservation_id == reservation_id]
    if all(instance.is_gone for instance in launched):
        # https://github.com/boto/boto3/issues/4406
        raise Refusal(
            "IdempotentInstanceTerminated",
            "The client token specified in the request is already in use for a terminated instance.",
        )
    return describing.reservation(world, launched)


def _check_plan(world: World, call: Call, instance_type: str) -> None:
    found = catalogue.facts(instance_type)
    if world.plan_of(call.account) == "FREE" and found and not found.free_tier:
        raise Refusal(
            "InvalidParameterCombination",
            "The specified instance type is not eligible for Free Tier. For a list of Free Tier instance types, "
            "run 'describe-instance-types' with the filter 'free-tier-eligible=true'.",
        )


def _choose_zone(world: World, call: Call, wish: Wish) -> str:
    # EC2 spreads launches that name no zone; here by chance, the same for the same seed.
    offered = sorted(moto_bridge.offered_in(wish.instance_type, call.region))
    if not offered or not world.rules.capacity:
        return offered[0] if offered else f"{call.region}a"
    random.Random(f"{world.seed}/{call.account}/{wish.instance_type}").shuffle(offered)  # noqa: S311 - repeatable on purpose
    for zone in offered:
        if world.capacity.has(wish.instance_type, zone, wish.at_least) and not world.faults.fills(
            call, zone
        ):
            return zone
    raise capacity.no_capacity(wish.instance_type, "", [])


def _how_many(world: World, call: Call, wish: Wish, zone: str) -> int:
    free = world.capacity.free(wish.instance_type, zone) if world.rules.capacity else None
    most = wish.at_most if free is None else max(wish.at_least, min(wish.at_most, free))
    left = quotas.left(world, call.account, call.region, wish.instance_type, wish.market)
    count = most if left is None else max(wish.at_least, min(most, left))
    quotas.check(world, call.account, call.region, wish.instance_type, wish.market, count)
    return count


def _for_moto(world: World, call: Call, wish: Wish, zone: str, count: int) -> dict[str, Any]:
    backend = moto_bridge.ec2(call.account, call.region)
    params = {**wish.params, "MinCount": count, "MaxCount": count}
    params.pop("DryRun", None)
    params["ImageId"] = world.images.resolve(
        call.account, call.region, str(params.get("ImageId", ""))
    )
    first = next(
        (n for n in params.get("NetworkInterfaces", []) if n.get("DeviceIndex", 0) == 0), None
    )
    if first is not None and not first.get("NetworkInterfaceId"):
        # moto shows no groups for interfaces described in the call; in front of it they are ordinary parameters.
        params.pop("NetworkInterfaces")
        params["SecurityGroupIds"] = first.get("Groups", [])
    if first is None or not first.get("NetworkInterfaceId"):
        params["SubnetId"] = subnet_in(wish.params) or moto_bridge.default_subnet(backend, zone)
        if not params.get("SecurityGroupIds") and not params.get("SecurityGroups"):
            params["SecurityGroupIds"] = [moto_bridge.default_group(backend, params["SubnetId"])]
    params["BlockDeviceMappings"] = _volumes(backend, params)
    params["TagSpecifications"] = [
        spec
        for spec in params.get("TagSpecifications", [])
        if spec.get("ResourceType") in ("instance", "volume") and spec.get("Tags")
    ]
    return {key: value for key, value in params.items() if value not in ("", [], None)}


def _volumes(backend: Any, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The call's volumes with what EC2 adds from the image: the root, its size, type and end."""
    image = moto_bridge.image(backend, params["ImageId"])
    root: dict[str, Any] = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 8}}
    if image is not None:
        root = image.block_device_mappings[0]
    name = root["DeviceName"]
    asked = {
        m["DeviceName"]: m
        for m in params.get("BlockDeviceMappings", [])
        if m.get("Ebs") is not None
    }
    own = asked.pop(name, {}).get("Ebs", {})
    inherited = {
        "VolumeSize": root["Ebs"]["VolumeSize"],
        "VolumeType": root["Ebs"].get("VolumeType", "gp3"),
        "DeleteOnTermination": True,
    }
    if snapshot := root["Ebs"].get("SnapshotId"):
        inherited["SnapshotId"] = snapshot
    ebs = {**inherited, **{key: value for key, value in own.items() if value is not None}}
    others = [{**m, "Ebs": {"VolumeType": "gp3", **m["Ebs"]}} for m in asked.values()]
    return [{"DeviceName": name, "Ebs": ebs}, *others]


def _adopt(world: World, call: Call, wish: Wish, zone: str, body: bytes) -> list[SimInstance]:
    from gpulab.sandbox.instances import SimInstance

    backend = moto_bridge.ec2(call.account, call.region)
    found = re.search(rb"<reservationId>([^<]+)</reservationId>", body)
    assert found is not None
    now = world.now()
    profile = wish.params.get("IamInstanceProfile", {})
    named = profile.get("Name") or profile.get("Arn")
    launched = []
    for index, id_ in enumerate(re.findall(rb"<instanceId>([^<]+)</instanceId>", body)):
        moto_instance = moto_bridge.instance(backend, id_.decode())
        instance = SimInstance(
            id=id_.decode(),
            account=call.account,
            region=call.region,
            zone=zone,
            instance_type=wish.instance_type,
            image_id=moto_instance.image_id,
            market=wish.market,
            reservation_id=found[1].decode(),
            launch_index=index,
            moto=moto_instance,
            params=wish.params,
            created_at=now,
            launched_at=now,
            visible_at=now + world.rules.delays.consistency,
            host_key=new_host_key(),
            shutdown_behavior=wish.params.get("InstanceInitiatedShutdownBehavior")
            or ("terminate" if wish.market == "spot" else "stop"),
            profile=moto_services.role_of_profile(call.account, named) if named else None,
            protects_from_termination=bool(wish.params.get("DisableApiTermination")),
        )
        _tag_the_rest(backend, instance)
        instance.behave(instance.shutdown_behavior)
        if (wants_public := _wants_public(wish.params)) is not None:
            moto_bridge.make_public(moto_instance, wanted=wants_public)
        world.instances_by_id[instance.id] = instance
        launched.append(instance)
    return launched


def _tag_the_rest(backend: Any, instance: SimInstance) -> None:
    for spec in instance.params.get("TagSpecifications", []):
        if spec.get("ResourceType") == "network-interface":
            tags = {tag["Key"]: tag.get("Value", "") for tag in spec["Tags"]}
            for interface in instance.moto.nics.values():
                moto_bridge.tag(backend, interface.id, tags)


def _wants_public(params: Mapping[str, Any]) -> bool | None:
    """What the launch says of a public address; `None` when the subnet decides."""
    for interface in params.get("NetworkInterfaces", []):
        if interface.get("AssociatePublicIpAddress") is not None:
            return bool(interface["AssociatePublicIpAddress"])
    return None


def _message(body: bytes) -> str:
    found = re.search(rb"<Message>([^<]*)</Message>", body)
    return found[1].decode() if found else ""
