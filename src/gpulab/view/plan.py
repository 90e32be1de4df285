"""A launch plan as a person reads it before saying yes."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from gpulab.fleet.plan import at_most_usd
from gpulab.model.instance import LaunchPlan
from gpulab.model.market import Market, Offer
from gpulab.planning.budgets import lasts
from gpulab.planning.plan import ceiling_usd_per_hour
from gpulab.view.budget import budget_json
from gpulab.view.words import local_time, money, per_hour, percent, span

_SHOWN = 4


def plan_text(plan: LaunchPlan, *, now: datetime, work: str = "") -> str:
    """
    Describe what will be started, in which order, and what it costs at most.

    Args:
        work: Where its work is kept; `""` says nothing about it.

    Returns:
        A few lines; every number has its unit.
    """
    first = plan.attempts[0]
    lines = [
        f"{plan.request.name}: {_type(first)}, {first.place.market}, environment {plan.request.environment}",
        f"  tries     {_order(plan)}",
        f"  price     {per_hour(first.usd_per_hour)}{_against_on_demand(first)}",
        f"  beside    {per_hour(plan.disk_usd_per_hour)} disk ({plan.disk_gib} GiB), {per_hour(plan.address_usd_per_hour)} address",
        f"  ends      {_ends(plan, now=now)}, or after {plan.request.idle_minutes} min without activity",
        f"  costs     {_costs(plan, now=now)}",
    ]
    if work:
        lines.append(f"  work      kept in {work}; what is there comes back")
    return "\n".join([*lines, *(f"  note      {warning}" for warning in plan.warnings)])


def plan_json(plan: LaunchPlan, *, work: str = "") -> dict[str, Any]:
    """Return the plan for programs: amounts as decimal texts in USD, moments as ISO 8601 in UTC."""
    return {
        "name": plan.request.name,
        "environment": plan.request.environment,
        "ends_at": plan.ends_at,
        "at_most_usd": most_usd(plan),
        "expected_usd": plan.expected_usd,
        "credit_left_usd": plan.credit_left_usd,
        "budget_usd": plan.request.budget_usd,
        "term_budget": budget_json(plan.term_budget),
        "disk_gib": plan.disk_gib,
        "disk_usd_per_hour": plan.disk_usd_per_hour,
        "address_usd_per_hour": plan.address_usd_per_hour,
        "attempts": [offer_json(offer) for offer in plan.attempts],
        "on_demand": [offer_json(offer) for offer in plan.on_demand],
        "work": work,
        "warnings": list(plan.warnings),
    }


def offer_json(offer: Offer) -> dict[str, Any]:
    """Return one offer for programs."""
    return {
        "region": offer.place.region,
        "zone": offer.place.zone,
        "instance_type": offer.place.instance_type,
        "market": offer.place.market,
        "gpu": offer.type.gpu_name,
        "gpus": offer.type.gpus,
        "gpu_memory_gib": offer.type.gpu_memory_gib,
        "vcpus": offer.type.vcpus,
        "memory_gib": offer.type.memory_gib,
        "usd_per_hour": offer.usd_per_hour,
        "on_demand_usd_per_hour": offer.on_demand_usd_per_hour,
        "priced_at": offer.priced_at,
    }


def savings(offer: Offer) -> Decimal | None:
    """Return the share of the on-demand price that is saved, 0 to 1; `None` when it is unknown."""
    full = offer.on_demand_usd_per_hour
    if full is None or full <= 0:
        return None
    return 1 - offer.usd_per_hour / full


def _type(offer: Offer) -> str:
    kind = offer.type
    if not kind.gpus:
        return f"{kind.name} (no GPU, {kind.vcpus} vCPUs, {kind.memory_gib.normalize():f} GiB)"
    gpu = f"{kind.gpus} x {kind.gpu_name}, {kind.gpu_memory_gib.normalize():f} GiB"
    return f"{kind.name} ({gpu}; {kind.vcpus} vCPUs, {kind.memory_gib.normalize():f} GiB)"


def _order(plan: LaunchPlan) -> str:
    places = [
        f"{offer.place.zone}"
        + ("" if offer.type == plan.attempts[0].type else f" {offer.type.name}")
        + f" at {per_hour(offer.usd_per_hour)}"
        for offer in plan.attempts[:_SHOWN]
    ]
    more = len(plan.attempts) - _SHOWN
    return ", then ".join(places) + (f", and {more} more" if more > 0 else "")


def _against_on_demand(offer: Offer) -> str:
    saved = savings(offer)
    if offer.place.market is Market.ON_DEMAND or saved is None or saved <= 0:
        return " on demand" if offer.place.market is Market.ON_DEMAND else " spot"
    full = offer.on_demand_usd_per_hour or Decimal(0)
    return f" spot, {percent(saved, Decimal(1))} below {per_hour(full)} on demand"


def _ends(plan: LaunchPlan, *, now: datetime) -> str:
    at_latest = f"{local_time(plan.ends_at, now=now)}, in {span(plan.request.duration)}"
    life = lasts(plan)
    if life is None:
        return at_latest
    budget = money(plan.request.budget_usd or Decimal(0))
    return f"when {budget} is used up, in about {span(life)} at today's price; at the latest {at_latest}"


def most_usd(plan: LaunchPlan) -> Decimal:
    """What a plan may cost when its own budget is counted, USD: the one figure a person is shown and asked to agree to."""
    if lasts(plan) is None:
        return plan.at_most_usd
    # The instance counts at the price of its launch: a spot price that rises passes the budget in the same ratio.
    return min(plan.at_most_usd, at_most_usd(plan))


def _costs(plan: LaunchPlan, *, now: datetime) -> str:
    most, about = most_usd(plan), plan.expected_usd
    until = f"until {local_time(plan.ends_at, now=now)}"
    if lasts(plan) is not None:
        about = min(about, plan.request.budget_usd or about)
    words = f"at most {money(most)} {until}{_dearest(plan)}, about {money(about)} at today's price"
    if plan.credit_left_usd is None:
        return f"{words}; what credit is left is not known (`gpulab credit`)"
    return f"{words}; at most {percent(most, plan.credit_left_usd)} of your {money(plan.credit_left_usd)} credit"


def _dearest(plan: LaunchPlan) -> str:
    """Say where the worst case comes from, when it is another type than the first, and how to rule it out."""
    first = plan.attempts[0].type.name
    dearest = max(plan.attempts, key=lambda o: ceiling_usd_per_hour(o, plan.request))
    if dearest.type.name == first or plan.request.instance_type is not None:
        return ""
    ceiling = per_hour(ceiling_usd_per_hour(dearest, plan.request))
    alone = replace(plan, attempts=tuple(o for o in plan.attempts if o.type.name == first))
    only = money(min(plan.at_most_usd, at_most_usd(alone)))
    return f" (a {dearest.type.name} at up to {ceiling}; with `--type {first}` {only})"
