"""Which rule answers which operation, and what is left to moto."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import (
    births,
    consistency,
    console,
    credentials,
    describing,
    images,
    instances,
    moto_bridge,
    prices,
    quotas,
    spot_requests,
)
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.faults import is_dry_run

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

Handler = Callable[["World", Call, Forward], Answer]

#: Service, operations, and the switch that gives them back to moto; empty for always.
_TABLE: tuple[tuple[str, Mapping[str, Handler], str], ...] = (
    ("ec2", instances.OPERATIONS, ""),
    ("ec2", describing.OPERATIONS, ""),
    ("ec2", spot_requests.OPERATIONS, "spot_requests"),
    ("ec2", prices.OPERATIONS, "prices"),
    ("ec2", console.OPERATIONS, "console"),
    ("ssm", images.OPERATIONS, "images"),
    ("service-quotas", quotas.OPERATIONS, "quotas"),
    ("sts", credentials.OPERATIONS, "credentials"),
)
_HANDLERS: dict[tuple[str, str], tuple[Handler, str]] = {
    (service, operation): (handler, switch)
    for service, handlers, switch in _TABLE
    for operation, handler in handlers.items()
}

#: Calls after which volumes and addresses may have come, gone or changed.
_CHANGES_BOOKS = ("Volume", "Address", "Fleet", "Snapshot", "Image")


def answer(world: World, call: Call, forward: Forward) -> Answer:
    """
    Answer a call by the rule that owns it, or by moto with the rules around it.

    Raises:
        Refusal: A rule says no, or nobody simulates the operation.
    """
    handler, switch = _HANDLERS.get((call.service, call.operation), (None, ""))
    if handler is not None and (not switch or getattr(world.rules, switch)):
        return handler(world, call, forward)
    return _by_moto(world, call, forward)


def furnish(world: World, account: str, region: str) -> None:
    """Make an account's EC2 in a Region what AWS makes it, before the first call."""
    moto_bridge.follow_clock(world.now)
    if world.rules.images:
        world.images.stock(account, region)
    if world.is_ready and not moto_bridge.has_role(account, "AWSServiceRoleForEC2Spot"):
        moto_bridge.create_spot_role(account)


def _by_moto(world: World, call: Call, forward: Forward) -> Answer:
    if call.service == "ec2":
        _before(world, call)
    try:
        found = forward(call)
    except NotImplementedError:
        raise Refusal(
            "NotSimulated", f"The sandbox does not simulate {call.service}:{call.operation}."
        ) from None
    return _after(world, call, found) if call.service == "ec2" else found


def _before(world: World, call: Call) -> None:
    ids = [i for i in instances.ids_in(call.params) if isinstance(i, str)]
    ids += [
        r for r in call.params.get("Resources", []) if isinstance(r, str) and r.startswith("i-")
    ]
    instances.check_visible(world, call, ids)
    if world.rules.consistency:
        consistency.check_groups(world, call)
    if is_dry_run(call.params):
        raise Refusal("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")


def _after(world: World, call: Call, found: Answer) -> Answer:
    if not found.ok:
        return found
    consistency.after_create(world, call, found)
    operation = call.operation
    if any(word in operation for word in _CHANGES_BOOKS) and not operation.startswith("Describe"):
        world.books.observe(call.account, call.region)
    if "SecurityGroup" in operation and not operation.startswith("Describe"):
        births.admit_again(world, call.account, call.region)
    if operation in ("CreateTags", "DeleteTags"):
        for id_ in call.params.get("Resources", []):
            if instance := world.instances_by_id.get(id_):
                births.publish(world, instance)
    return consistency.without_hidden(world, call, found)


def as_table() -> list[dict[str, Any]]:
    """Every operation the layer answers itself, with its switch; for the documentation."""
    return [
        {"service": service, "operation": operation, "switch": switch}
        for (service, operation), (_, switch) in sorted(_HANDLERS.items())
    ]


__all__ = ["answer", "as_table", "furnish"]
