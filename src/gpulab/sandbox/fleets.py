"""R7: CreateFleet of type instant: overrides by strategy, partial results, and why the rest is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import launching, lifecycle, moto_bridge, validation
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.instances import SimInstance
    from gpulab.sandbox.world import World


@dataclass
class Pool:
    """One override of one launch template: a place to launch in."""

    template: Mapping[str, Any]
    override: Mapping[str, Any]
    wish: launching.Wish
    order: int
    launched: list[SimInstance] = field(default_factory=list)
    refusal: Refusal | None = None


def create_fleet(world: World, call: Call, forward: Forward) -> Answer:
    """Answer CreateFleet; R1: the same token gives the same fleet again."""
    if call.params.get("Type") != "instant":
        raise Refusal("NotSimulated", "The sandbox simulates fleets of type instant only.")
    if call.params.get("DryRun"):
        raise Refusal("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
    if world.rules.tokens and (known := world.tokens.recall(call, "")):
        return write_result(call, world.fleets[known])
    fleet_id = "fleet-" + world.new_id("", 32)
    pools = _pools(world, call, fleet_id)
    _fill(world, call, pools, forward)
    _enforce_minimum(world, call, pools)
    world.fleets[fleet_id] = {
        "FleetId": fleet_id,
        "Errors": [_error(pool) for pool in pools if pool.refusal is not None],
        "Instances": [_instances(pool) for pool in pools if pool.launched],
    }
    world.tokens.remember(call, "", fleet_id)
    return write_result(call, world.fleets[fleet_id])


def _pools(world: World, call: Call, fleet_id: str) -> list[Pool]:
    backend = moto_bridge.ec2(call.account, call.region)
    market = _market(call.params)
    pools: list[Pool] = []
    for config in call.params.get("LaunchTemplateConfigs", []):
        template = config.get("LaunchTemplateSpecification", {})
        data = launching.merge_template(backend, {"LaunchTemplate": template})
        for override in config.get("Overrides") or [{}]:
            params = _params(call, data, override, market, fleet_id)
            wish = launching.Wish(
                params=params,
                instance_type=str(params.get("InstanceType", "")),
                market=market,
                named_zone=launching.zone_in(backend, params),
                at_least=1,
                at_most=1,
            )
            pools.append(Pool(template, override, wish, len(pools)))
    return pools


def _params(
    call: Call, data: Mapping[str, Any], override: Mapping[str, Any], market: str, fleet_id: str
) -> dict[str, Any]:
    params = {**data, "MinCount": 1, "MaxCount": 1}
    for name in ("InstanceType", "SubnetId", "ImageId"):
        if override.get(name):
            params[name] = override[name]
    if zone := override.get("AvailabilityZone"):
        params["Placement"] = {**params.get("Placement", {}), "AvailabilityZone": zone}
    if market == "spot":
        cap = override.get("MaxPrice")
        params["InstanceMarketOptions"] = {
            "MarketType": "spot",
            "SpotOptions": {"SpotInstanceType": "one-time", **({"MaxPrice": cap} if cap else {})},
        }
    else:
        params.pop("InstanceMarketOptions", None)
    own = [s for s in call.params.get("TagSpecifications", []) if s.get("ResourceType") != "fleet"]
    mark = {"ResourceType": "instance", "Tags": [{"Key": "aws:ec2:fleet-id", "Value": fleet_id}]}
    params["TagSpecifications"] = [*params.get("TagSpecifications", []), *own, mark]
    return params


def _market(params: Mapping[str, Any]) -> str:
    target = params.get("TargetCapacitySpecification", {})
    if target.get("SpotTargetCapacity"):
        return "spot"
    default = target.get("DefaultTargetCapacityType", "on-demand")
    return "spot" if default == "spot" else "on-demand"


def _fill(world: World, call: Call, pools: list[Pool], forward: Forward) -> None:
    wanted = int(call.params.get("TargetCapacitySpecification", {}).get("TotalTargetCapacity", 1))
    market = _market(call.params)
    options = call.params.get("SpotOptions" if market == "spot" else "OnDemandOptions", {})
    strategy = options.get("AllocationStrategy", "lowest-price")
    ordered = _ordered(world, call, pools, strategy)
    done = turn = 0
    while done < wanted and (open_pools := [p for p in ordered if p.refusal is None]):
        pool = open_pools[turn % len(open_pools)] if strategy == "diversified" else open_pools[0]
        turn += 1
        done += _launch_into(world, call, pool, forward)


def _launch_into(world: World, call: Call, pool: Pool, forward: Forward) -> int:
    weight = int(pool.override.get("WeightedCapacity") or 1)
    launch_call = replace(call, operation="RunInstances", params=pool.wish.params)
    try:
        checked = [s for s in pool.wish.params["TagSpecifications"] if not _is_fleet_mark(s)]
        validation.check_launch(
            world, launch_call, {**pool.wish.params, "TagSpecifications": checked}
        )
        pool.launched += launching.launch_wish(world, launch_call, pool.wish, forward)
    except Refusal as refusal:
        pool.refusal = refusal
        return 0
    return weight


def _is_fleet_mark(specification: Mapping[str, Any]) -> bool:
    return any(str(tag.get("Key")).startswith("aws:") for tag in specification.get("Tags", []))


def _ordered(world: World, call: Call, pools: list[Pool], strategy: str) -> list[Pool]:
    if strategy in ("capacity-optimized", "price-capacity-optimized"):
        return sorted(pools, key=lambda p: (-_room(world, p), _price(world, call, p), p.order))
    if strategy in ("capacity-optimized-prioritized", "prioritized"):
        return sorted(pools, key=lambda p: (p.override.get("Priority") or 0.0, p.order))
    if strategy == "diversified":
        return pools
    return sorted(pools, key=lambda p: (_price(world, call, p), p.order))


def _room(world: World, pool: Pool) -> int:
    free = world.capacity.free(pool.wish.instance_type, pool.wish.named_zone)
    return 1 if free is None or free > 0 else 0


def _price(world: World, call: Call, pool: Pool) -> Decimal:
    wish = pool.wish
    zone = wish.named_zone or f"{call.region}a"
    if wish.market == "spot":
        return world.prices.price(wish.instance_type, zone, world.now())
    return world.on_demand_price(wish.instance_type, call.region)


def _enforce_minimum(world: World, call: Call, pools: list[Pool]) -> None:
    options = call.params.get("SpotOptions") or call.params.get("OnDemandOptions") or {}
    least = options.get("MinTargetCapacity")
    if least is None or sum(len(pool.launched) for pool in pools) >= int(least):
        return
    for pool in pools:
        for instance in pool.launched:
            lifecycle.terminate(world, instance, by="user")
        if pool.launched:
            pool.launched = []
            pool.refusal = Refusal(
                "UnfulfillableCapacity", "Unable to fulfill the minimum target capacity."
            )


def _error(pool: Pool) -> dict[str, Any]:
    assert pool.refusal is not None
    return {
        "LaunchTemplateAndOverrides": _where(pool),
        "Lifecycle": pool.wish.market,
        "ErrorCode": pool.refusal.code,
        "ErrorMessage": pool.refusal.message,
    }


def _instances(pool: Pool) -> dict[str, Any]:
    return {
        "LaunchTemplateAndOverrides": _where(pool),
        "Lifecycle": pool.wish.market,
        "InstanceIds": [instance.id for instance in pool.launched],
        "InstanceType": pool.wish.instance_type,
        "AvailabilityZone": pool.launched[0].zone,
    }


def _where(pool: Pool) -> dict[str, Any]:
    return {"LaunchTemplateSpecification": pool.template, "Overrides": pool.override}


OPERATIONS: Mapping[str, Any] = {"CreateFleet": create_fleet}
