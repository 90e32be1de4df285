"""Which rule answers which operation, and what is left to moto."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import (
    births,
    budgets,
    consistency,
    console,
    cost_explorer,
    credentials,
    describing,
    fleets,
    iam_profiles,
    images,
    instances,
    money,
    moto_bridge,
    moto_services,
    own_images,
    price_list,
    prices,
    quotas,
    schedules,
    spot_requests,
    type_pages,
    vpc,
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
    ("ec2", vpc.OPERATIONS, "vpc"),
    ("ec2", fleets.OPERATIONS, "capacity"),
    ("ec2", type_pages.OPERATIONS, ""),
    ("ec2", own_images.OPERATIONS, "images"),
    ("ssm", images.OPERATIONS, "images"),
    ("service-quotas", quotas.OPERATIONS, "quotas"),
    ("sts", credentials.OPERATIONS, "credentials"),
    ("billing", money.BILLING, "money"),
    ("freetier", money.FREE_TIER, "money"),
    ("ce", cost_explorer.OPERATIONS, "money"),
    ("pricing", price_list.OPERATIONS, "money"),
    ("budgets", budgets.OPERATIONS, "money"),
    ("scheduler", schedules.OPERATIONS, ""),
    ("iam", iam_profiles.OPERATIONS, ""),
)
_HANDLERS: dict[tuple[str, str], tuple[Handler, str]] = {
    (service, operation): (handler, switch)
    for service, handlers, switch in _TABLE
    for operation, handler in handlers.items()
}

#: They look at ids, dry runs and groups in an order of their own.
_CHECK_THEMSELVES = frozenset(
    {*instances.OPERATIONS, *describing.OPERATIONS, *spot_requests.OPERATIONS, "CreateFleet"}
)

#: Calls after which volumes and addresses may have come, gone or changed.
_CHANGES_BOOKS = ("Volume", "Address", "Fleet", "Snapshot", "Image")


def answer(world: World, call: Call, forward: Forward) -> Answer:
    """
    Answer a call by the rule that owns it, or by moto with the rules around it.

    Raises:
        Refusal: A rule says no, or nobody simulates the operation.
    """
    handler, switch = _HANDLERS.get((call.service, call.operation), (None, ""))
    guarded = _guarded(world, forward)
    if call.service == "ec2" and call.operation not in _CHECK_THEMSELVES:
        _before(world, call)
    if handler is not None and (not switch or getattr(world.rules, switch)):
        return _after(world, call, handler(world, call, guarded))
    return _after(world, call, guarded(call))


def furnish(world: World, account: str, region: str) -> None:
    """Make an account's EC2 in a Region what AWS makes it, before the first call."""
    moto_bridge.follow_clock(world.now)
    if world.rules.images:
        world.images.stock(account, region)
    if world.rules.vpc:
        moto_bridge.add_gateway(moto_bridge.ec2(account, region))
    if world.is_ready and not moto_services.has_role(account, "AWSServiceRoleForEC2Spot"):
        moto_services.create_spot_role(account)


def _guarded(world: World, forward: Forward) -> Forward:
    def to_moto(call: Call) -> Answer:
        try:
            return forward(call)
        except NotImplementedError:
            what = f"{call.service}:{call.operation}"
            raise Refusal("NotSimulated", f"The sandbox does not simulate {what}.") from None

    return to_moto


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
    if call.service != "ec2":
        return found
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
