"""
What a person may ask of a running sandbox: the control API, as functions over its world. Hides how the world keeps it.

Every function takes the world and the request's parameters, and returns what JSON can say. What cannot be done is a `WrongUsage`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from gpulab.errors import WrongUsage
from gpulab.model.instance import TAG_NAME
from gpulab.model.nearest import did_you_mean
from gpulab.sandbox import moto_bridge, quotas
from gpulab.sandbox.instances import SimInstance
from gpulab.sandbox.world import World

Answer = Callable[[World, Mapping[str, Any]], Any]

_SSH_PORT = 22
_SERVICES = (
    *("ec2", "s3", "sts", "iam", "ssm", "service-quotas", "pricing", "scheduler", "budgets"),
    *("billing", "freetier", "ce"),
)
_LARGEST_LOG = 5000


def status(world: World, _: Mapping[str, Any]) -> dict[str, Any]:
    """Say what the world holds: its time, its instances, what has cost, and what was turned."""
    with world.lock:
        bill = world.bill()
        return {
            "now": _z(world.now()),
            "calls": len(world.calls),
            "simulated_usd": format(bill.total_usd, ".4f"),
            "instances": [_described(world, i) for i in world.instances_by_id.values()],
            "capacity": [
                {"type": type_, "zone": zone, "free": free}
                for (type_, zone), free in sorted(world.capacity.table().items())
            ],
        }


def log(world: World, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the calls after the first `since`; at most some thousands at once, so ask again from `next`."""
    since = int(request.get("since", 0))
    calls = list(world.calls)[since : since + _LARGEST_LOG]
    # A call whose outcome is open is told once it is known.
    done = next((n for n, call in enumerate(calls) if not call.outcome), len(calls))
    return {"calls": [call.as_json() for call in calls[:done]], "next": since + done}


def interrupt(world: World, request: Mapping[str, Any]) -> dict[str, Any]:
    """Interrupt a spot instance by its name or id."""
    with world.lock:
        instance = _instance(world, str(request["name"]))
        try:
            world.interrupt(
                instance.id,
                in_seconds=float(request["in_seconds"]),
                action=str(request["action"]),
                rebalance_first=bool(request["rebalance_first"]),
            )
        except ValueError as error:
            raise WrongUsage(
                str(error), hint="`gpulab sandbox status` lists the instances"
            ) from error
        return {"id": instance.id, "notice": instance.notice}


def capacity(world: World, request: Mapping[str, Any]) -> dict[str, Any]:
    """Set how many more instances of a type fit into a zone; `None` for as many as wanted."""
    instance_type, zone = _place(request)
    with world.lock:
        world.set_capacity(instance_type, zone, request["slots"])
    return {"type": instance_type, "zone": zone, "free": request["slots"]}


def price(world: World, request: Mapping[str, Any]) -> dict[str, Any]:
    """Set the spot price of a place from now on."""
    instance_type, zone = _place(request)
    try:
        usd = Decimal(str(request["usd"]))
    except InvalidOperation:
        usd = Decimal(0)
    if not usd.is_finite() or usd <= 0:
        raise WrongUsage(f"`{request['usd']}` is not an amount of dollars above 0")
    with world.lock:
        world.set_price(instance_type, zone, usd)
    return {"type": instance_type, "zone": zone, "usd_per_hour": format(usd, "f")}


def quota(world: World, request: Mapping[str, Any]) -> dict[str, Any]:
    """Set a quota of every account, in one region or in all."""
    code, region = str(request["code"]).upper(), request.get("region") or "*"
    if code not in quotas.QUOTAS:
        known = ", ".join(f"{q.code} ({q.name})" for q in quotas.QUOTAS.values())
        raise WrongUsage(f"`{code}` is not a quota the sandbox knows", hint=f"Known: {known}")
    if region != "*" and region not in _regions():
        raise WrongUsage(f"`{region}` is not a region", hint="Such as us-east-1")
    regions = [region] if region != "*" else sorted(_regions())
    with world.lock:
        for name in regions:
            world.set_quota(code, name, int(request["vcpus"]))
    return {"code": code, "name": quotas.QUOTAS[code].name, "regions": regions}


def throttle(world: World, request: Mapping[str, Any]) -> dict[str, Any]:
    """Give an operation a token bucket of another size."""
    operation = _operation(str(request["operation"]), ("ec2",))
    size, per_second = float(request["size"]), float(request["per_second"])
    with world.lock:
        world.throttle.set_bucket(operation, size, per_second)
    return {"operation": operation, "size": size, "per_second": per_second}


def fail(world: World, request: Mapping[str, Any]) -> dict[str, Any]:
    """Let calls of an operation fail: refused with a code, or with a broken connection."""
    operation, code = _operation(str(request["operation"]), _SERVICES), str(request["code"])
    times, zone = request.get("times"), request.get("zone")
    if zone is not None:
        _check_zone(str(zone))
    with world.lock:
        if code == "reply-lost":
            world.lose_reply(operation, times=times, zone=zone)
        elif code == "request-lost":
            world.drop_request(operation, times=times, zone=zone)
        else:
            world.refuse(operation, code, times=times, zone=zone)
    return {"operation": operation, "code": code, "times": times, "zone": zone}


def mend(world: World, _: Mapping[str, Any]) -> dict[str, Any]:
    """Lift every fault, and give every operation AWS's own bucket back."""
    with world.lock:
        world.faults.clear()
        world.throttle.reset()
    return {}


def apply(world: World, request: Mapping[str, Any]) -> dict[str, Any]:
    """Let the owner of an account upload a template: its roles are made there."""
    text, account = str(request["template"]), str(request.get("account") or "")
    return {"roles": world.apply_template(text, account=account)}


def door(world: World, request: Mapping[str, Any]) -> dict[str, Any]:
    """
    Say where the machine behind an address (or an instance id) is reached.

    A refusal has the words of a network: a port that no security group opens and a machine that is off give no answer at all,
    a machine whose ssh server is not up yet refuses.
    """
    host, port = str(request["host"]), int(request["port"])
    instance = next((i for i in world.instances_by_id.values() if host in _names(i)), None)
    if instance is None or instance.machine is None or instance.is_gone:
        return {"refused": "Connection timed out"}
    if not is_admitted(instance, port):
        return {"refused": "Connection timed out"}
    place = instance.machine.door
    if place is None or port != _SSH_PORT:
        return {"refused": "Connection refused"}
    return {"host": place[0], "port": place[1]}


def is_admitted(instance: SimInstance, port: int) -> bool:
    """Tell whether a security group of the instance lets TCP in on a port, from wherever."""
    from gpulab.sandbox.births import ingress_of

    return any(
        rule.protocol in ("-1", "all")
        or (rule.protocol in ("tcp", "6") and rule.from_port <= port <= rule.to_port)
        for rule in ingress_of(instance)
    )


ANSWERS: Mapping[str, Answer] = {
    "status": status,
    "log": log,
    "interrupt": interrupt,
    "capacity": capacity,
    "price": price,
    "quota": quota,
    "throttle": throttle,
    "fail": fail,
    "mend": mend,
    "apply": apply,
    "door": door,
}
"""Every request of the control API but `stop`, by its last part."""


def _described(world: World, instance: SimInstance) -> dict[str, Any]:
    door = instance.machine.door if instance.machine is not None else None
    return {
        "id": instance.id,
        "name": instance.tags.get(TAG_NAME) or instance.tags.get("Name") or "",
        "state": instance.state,
        "state_reason": instance.state_reason[0],
        "market": instance.market,
        "type": instance.instance_type,
        "zone": instance.zone,
        "address": instance.moto.public_ip or "",
        "launched_at": _z(instance.launched_at),
        "notice": instance.notice,
        "door": f"{door[0]}:{door[1]}" if door else None,
    }


def _instance(world: World, name: str) -> SimInstance:
    alive = [i for i in world.instances_by_id.values() if not i.is_gone]
    found = [i for i in alive if name in _names(i)]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(i.id for i in found)
        raise WrongUsage(f"`{name}` names {len(found)} instances", hint=f"Use an id: {ids}")
    known = ", ".join(sorted(i.tags.get(TAG_NAME) or i.id for i in alive)) or "none"
    raise WrongUsage(f"no instance is called `{name}`", hint=f"Running or stopped now: {known}")


def _names(instance: SimInstance) -> set[str]:
    tags = instance.tags
    return {
        instance.id,
        tags.get(TAG_NAME) or instance.id,
        tags.get("Name") or instance.id,
        instance.moto.public_ip or instance.id,
        instance.moto.private_ip or instance.id,
    }


def _place(request: Mapping[str, Any]) -> tuple[str, str]:
    instance_type, zone = str(request["type"]), str(request["zone"])
    if moto_bridge.instance_type(instance_type) is None:
        raise WrongUsage(f"`{instance_type}` is not an instance type", hint="Such as g4dn.xlarge")
    _check_zone(zone)
    return instance_type, zone


def _check_zone(zone: str) -> None:
    region = zone.rstrip("abcdefghijklmnopqrstuvwxyz")
    there = [name for name, _ in moto_bridge.zones(region)]
    if zone not in there:
        hint = f"{region} has {', '.join(there)}" if there else "Such as us-east-1a"
        raise WrongUsage(f"`{zone}` is not an availability zone", hint=hint)


def _operation(name: str, services: tuple[str, ...]) -> str:
    """Return the name of an operation as AWS writes it; `*` is every one."""
    known = {op: op for service in services for op in _operations(service)} | {"*": "*"}
    if name in known:
        return name
    hint = did_you_mean(name, known, otherwise="Such as RunInstances", at_least=0.5)
    raise WrongUsage(f"`{name}` is not an operation of {', '.join(services)}", hint=hint)


@cache
def _operations(service: str) -> tuple[str, ...]:
    from moto.core.utils import get_service_model

    return tuple(get_service_model(service).operation_names)


def _regions() -> set[str]:
    import boto3

    return set(boto3.Session().get_available_regions("ec2"))


def _z(moment: Any) -> str:
    return str(moment.strftime("%Y-%m-%dT%H:%M:%SZ"))
