"""R2 to R5: spot requests, their states over time, and what a persistent one does when its instance ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import moto_bridge, paging
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.filters import Finder, check, matches
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.instances import SimInstance
    from gpulab.sandbox.launching import Wish
    from gpulab.sandbox.world import World

_MESSAGES = {
    "fulfilled": "Your spot request is fulfilled.",
    "pending-evaluation": "Your Spot request has been submitted for review, and is pending evaluation.",
    "capacity-not-available": "There is no Spot capacity available that matches your request.",
    "instance-terminated-by-user": "Spot Instance terminated due to user-initiated termination.",
    "instance-terminated-no-capacity": "Your Spot instance was terminated because there is no Spot capacity available.",
    "instance-stopped-by-user": "The Spot Instance was stopped by the user.",
    "instance-stopped-no-capacity": "Your Spot Instance was stopped because there is no Spot capacity available.",
    "marked-for-termination": "Your Spot Instance is marked for termination.",
    "marked-for-stop": "Your Spot Instance is marked for stop.",
    "request-canceled-and-instance-running": "Your Spot request is canceled, but your instance is still running.",
    "canceled-before-fulfillment": "Your Spot request was canceled before it was fulfilled.",
}


@dataclass
class SpotRequest:
    """
    One `sir-…` object.

    Attributes:
        type: `one-time` or `persistent`.
        state: `open`, `active`, `closed`, `cancelled`, `failed`, `disabled`.
        status: EC2's status code, `fulfilled`.
        call, wish: What was asked, for the next launch of a persistent request.
    """

    id: str
    account: str
    region: str
    type: str
    interruption: str
    max_price: str
    valid_until: datetime | None
    call: Call
    wish: Wish
    created_at: datetime
    updated_at: datetime
    state: str = "active"
    status: str = "fulfilled"
    instance_id: str = ""
    product: str = field(default="Linux/UNIX")

    def become(self, state: str, status: str, at: datetime) -> None:
        """Change the state and say why."""
        self.state, self.status, self.updated_at = state, status, at


def attach(
    world: World, call: Call, wish: Wish, instance: SimInstance, *, request_id: str = ""
) -> None:
    """Give a spot instance its request: a new one, or the persistent one that asked for it."""
    now = world.now()
    request = world.spot_requests.get(request_id)
    if request is None:
        request = _new(world, call, wish, now)
        world.spot_requests[request.id] = request
        _tag(request, wish)
    request.instance_id = instance.id
    request.become("active", "fulfilled", now)
    instance.spot_request_id = request.id
    if wish.params.get("InstanceInitiatedShutdownBehavior") is None:
        instance.behave("terminate" if request.type == "one-time" else "stop")


def leaving(world: World, instance: SimInstance, *, change: str, by: str) -> None:
    """The instance has begun to stop or to terminate."""
    request = world.spot_requests.get(instance.spot_request_id)
    if request is None or request.state == "cancelled":
        return
    now = world.now()
    if change == "stop":
        if by == "aws":
            request.become("open", "instance-stopped-no-capacity", now)
        else:
            request.become("disabled", "instance-stopped-by-user", now)
        return
    status = "instance-terminated-no-capacity" if by == "aws" else "instance-terminated-by-user"
    request.become("closed" if request.type == "one-time" else "open", status, now)


def stopped(world: World, instance: SimInstance) -> None:
    """The instance is stopped; one that AWS stopped comes back when there is capacity (R5)."""
    request = world.spot_requests.get(instance.spot_request_id)
    if (
        request is None
        or request.status != "instance-stopped-no-capacity"
        or not world.rules.relaunch
    ):
        return
    world.after(
        world.rules.delays.relaunch.total_seconds(), lambda: _restart(world, instance, request)
    )


def restarted(world: World, instance: SimInstance) -> None:
    """A stopped instance starts again."""
    request = world.spot_requests.get(instance.spot_request_id)
    if request is not None and request.state in ("disabled", "open"):
        request.become("active", "fulfilled", world.now())


def ended(world: World, instance: SimInstance) -> None:
    """
    The instance is terminated; a persistent request that was not cancelled asks for a new one (R5), any other is forgotten in time (R13).

    Source:
        https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_DescribeSpotInstanceRequests.html (2026-11-23)
    """
    request = world.spot_requests.get(instance.spot_request_id)
    if request is None:
        return
    if request.type != "persistent" or request.state == "cancelled":
        if world.rules.forgetting:
            delay = world.rules.delays.forget_request.total_seconds()
            world.after(delay, lambda: _forget(world, request))
        return
    if not world.rules.relaunch:
        return
    request.become("open", "pending-evaluation", world.now())
    world.after(world.rules.delays.relaunch.total_seconds(), lambda: _relaunch(world, request))


def _forget(world: World, request: SpotRequest) -> None:
    world.spot_requests.pop(request.id, None)


def describe_spot_instance_requests(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DescribeSpotInstanceRequests; an unknown id is an error, as on AWS."""
    filters = call.params.get("Filters", [])
    check(filters, _FILTERS)
    ids = call.params.get("SpotInstanceRequestIds", [])
    found = {r.id: r for r in _own(world, call)}
    _check_known(ids, found)
    # Requests outlive their instances, so a term has thousands: the name is looked at before all the rest is written out.
    by_id = [entry for entry in filters if entry["Name"] == "spot-instance-request-id"]
    named = (
        r
        for r in found.values()
        if (not ids or r.id in ids) and matches({"SpotInstanceRequestId": r.id}, by_id, _FILTERS)
    )
    rows = [row for r in named if matches(row := _describe(world, r), filters, _FILTERS)]
    page, token = paging.page(rows, call.params, largest=1000)
    return write_result(call, {"SpotInstanceRequests": page, "NextToken": token})


def cancel_spot_instance_requests(world: World, call: Call, forward: Forward) -> Answer:
    """Answer CancelSpotInstanceRequests: the request stays visible, its instance keeps running."""
    ids = call.params.get("SpotInstanceRequestIds", [])
    found = {r.id: r for r in _own(world, call)}
    _check_known(ids, found)
    if call.params.get("DryRun"):
        raise Refusal("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
    for id_ in ids:
        request = found[id_]
        if request.state in ("open", "active", "disabled"):
            instance = world.instances_by_id.get(request.instance_id)
            lives = instance is not None and not instance.is_gone
            status = (
                "request-canceled-and-instance-running" if lives else "canceled-before-fulfillment"
            )
            request.become("cancelled", status, world.now())
    cancelled = [{"SpotInstanceRequestId": id_, "State": found[id_].state} for id_ in ids]
    return write_result(call, {"CancelledSpotInstanceRequests": cancelled})


def request_spot_instances(world: World, call: Call, forward: Forward) -> Answer:
    """Answer the legacy RequestSpotInstances: one request and, where there is room, one instance for each asked for."""
    from gpulab.sandbox import launching, validation

    specification = dict(call.params.get("LaunchSpecification", {}))
    options = {
        "SpotInstanceType": call.params.get("Type", "one-time"),
        "MaxPrice": call.params.get("SpotPrice"),
        "InstanceInterruptionBehavior": call.params.get("InstanceInterruptionBehavior"),
        "ValidUntil": call.params.get("ValidUntil"),
    }
    market = {
        "MarketType": "spot",
        "SpotOptions": {k: v for k, v in options.items() if v is not None},
    }
    params = {
        **specification,
        "InstanceMarketOptions": market,
        "TagSpecifications": call.params.get("TagSpecifications", []),
        "MinCount": 1,
        "MaxCount": 1,
    }
    launch_call = replace(call, operation="RunInstances", params=params)
    wish = launching.read_wish(world, launch_call)
    validation.check_launch(world, launch_call, wish.params)
    if call.params.get("DryRun"):
        raise Refusal("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
    made = []
    for _ in range(int(call.params.get("InstanceCount", 1))):
        request = _new(world, launch_call, wish, world.now())
        request.become("open", "pending-evaluation", world.now())
        world.spot_requests[request.id] = request
        _tag(request, wish)
        _relaunch(world, request)
        made.append(_describe(world, request))
    return write_result(call, {"SpotInstanceRequests": made})


def _new(world: World, call: Call, wish: Wish, now: datetime) -> SpotRequest:
    options = wish.spot_options
    type_ = options.get("SpotInstanceType", "one-time")
    return SpotRequest(
        id=world.new_id("sir-", 8),
        account=call.account,
        region=call.region,
        type=type_,
        interruption=options.get("InstanceInterruptionBehavior")
        or ("terminate" if type_ == "one-time" else "stop"),
        max_price=str(
            options.get("MaxPrice") or world.on_demand_price(wish.instance_type, call.region)
        ),
        valid_until=options.get("ValidUntil"),
        call=call,
        wish=wish,
        created_at=now,
        updated_at=now,
    )


def _tag(request: SpotRequest, wish: Wish) -> None:
    backend = moto_bridge.ec2(request.account, request.region)
    for spec in wish.params.get("TagSpecifications", []):
        if spec.get("ResourceType") == "spot-instances-request":
            tags = {tag["Key"]: tag.get("Value", "") for tag in spec.get("Tags", [])}
            moto_bridge.tag(backend, request.id, tags)


def _relaunch(world: World, request: SpotRequest) -> None:
    from gpulab.sandbox import launching

    if request.state != "open":
        return
    now = world.now()
    if request.valid_until is not None and now >= _aware(request.valid_until):
        request.become("cancelled", "schedule-expired", now)
        return
    try:
        launching.launch_wish(
            world, request.call, request.wish, world.forward, request_id=request.id
        )
    except Refusal as refusal:
        status = "capacity-not-available" if refusal.status >= 500 else "bad-parameters"
        request.become("open" if refusal.status >= 500 else "failed", status, now)
        if refusal.status >= 500:
            world.after(
                world.rules.delays.relaunch.total_seconds(), lambda: _relaunch(world, request)
            )


def _restart(world: World, instance: SimInstance, request: SpotRequest) -> None:
    from gpulab.sandbox import launching, lifecycle

    if instance.state != "stopped" or request.state != "open":
        return
    try:
        launching.take_capacity(world, instance.instance_type, instance.zone, instance.region, 1)
    except Refusal:
        stopped(world, instance)
        return
    lifecycle.start(world, instance)


def _own(world: World, call: Call) -> list[SpotRequest]:
    here = (call.account, call.region)
    return [r for r in world.spot_requests.values() if (r.account, r.region) == here]


def _check_known(ids: list[str], found: Mapping[str, SpotRequest]) -> None:
    if missing := [id_ for id_ in ids if id_ not in found]:
        raise Refusal(
            "InvalidSpotInstanceRequestID.NotFound",
            f"The spot instance request ID '{missing[0]}' does not exist",
        )


def _describe(world: World, request: SpotRequest) -> dict[str, Any]:
    backend = moto_bridge.ec2(request.account, request.region)
    instance = world.instances_by_id.get(request.instance_id)
    params = request.wish.params
    described = {
        "SpotInstanceRequestId": request.id,
        "State": request.state,
        "Status": {
            "Code": request.status,
            "Message": _MESSAGES.get(request.status, request.status),
            "UpdateTime": request.updated_at,
        },
        "Type": request.type,
        "InstanceInterruptionBehavior": request.interruption,
        "SpotPrice": f"{float(request.max_price):.6f}",
        "CreateTime": request.created_at,
        "ProductDescription": request.product,
        "ValidUntil": request.valid_until,
        "Tags": [
            {"Key": k, "Value": v} for k, v in moto_bridge.tags_of(backend, request.id).items()
        ],
        "LaunchSpecification": {
            "ImageId": params.get("ImageId"),
            "InstanceType": request.wish.instance_type,
            "KeyName": params.get("KeyName"),
            "Placement": {
                "AvailabilityZone": instance.zone if instance else request.wish.named_zone
            },
            "Monitoring": {"Enabled": False},
        },
    }
    if instance is not None:
        described["InstanceId"] = instance.id
        described["LaunchedAvailabilityZone"] = instance.zone
    return described


def _aware(moment: datetime) -> datetime:
    from datetime import UTC

    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


_FILTERS: Mapping[str, Finder] = {
    "availability-zone-group": "AvailabilityZoneGroup",
    "create-time": "CreateTime",
    "instance-id": "InstanceId",
    "launch.image-id": "LaunchSpecification.ImageId",
    "launch.instance-type": "LaunchSpecification.InstanceType",
    "launch.key-name": "LaunchSpecification.KeyName",
    "launched-availability-zone": "LaunchedAvailabilityZone",
    "product-description": "ProductDescription",
    "spot-instance-request-id": "SpotInstanceRequestId",
    "spot-price": "SpotPrice",
    "state": "State",
    "status-code": "Status.Code",
    "type": "Type",
    "valid-until": "ValidUntil",
}

OPERATIONS: Mapping[str, Any] = {
    "DescribeSpotInstanceRequests": describe_spot_instance_requests,
    "CancelSpotInstanceRequests": cancel_spot_instance_requests,
    "RequestSpotInstances": request_spot_instances,
}
