"""
Request + snapshot -> what to try, in which order, and what it costs at most. Refuses, with one action each, before any money.

The order: markets as asked; regions as asked; the cheapest type first and all its zones, cheapest first, then the next type.
Places that were full a moment ago come last: capacity often returns in minutes, so they are demoted, not dropped.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from gpulab.errors import CreditTooLow, GpulabError, Refused
from gpulab.model.instance import Instance, LaunchPlan, LaunchRequest
from gpulab.model.market import InstanceType, Market, Offer
from gpulab.planning import budgets, quotas
from gpulab.planning.snapshot import Limits, Snapshot, gp3_usd_per_gib_month
from gpulab.planning.wishes import types_for

_HOUR = Decimal(3600)
# TensorFlow 2.21 took 0.73 GiB for one small model on a CPU, JupyterLab's server beside it (23 November 2026, `tf2`).
_LEAST_GIB = 2


def plan_launch(
    request: LaunchRequest, snapshot: Snapshot, *, limits: Limits | None = None
) -> LaunchPlan:
    """
    Decide what to try, in which order, and what it costs at most.

    Returns:
        A plan whose `attempts` is never empty. Ties are broken by type and zone, so a plan can be repeated.

    Raises:
        WrongUsage: Nobody knows the GPU or the type.
        Refused: Longer than the limit, not sold in the regions, or dearer than the cap everywhere.
        QuotaTooLow: AWS's limits leave no room anywhere; the hint holds the request that raises one.
        CreditTooLow: The worst case does not fit into the credit, or into what is left of the term's budget.
    """
    limits = limits or Limits()
    wanted = {t.name for t in check_request(request, snapshot.types, limits)}
    sold = _sold(request, snapshot, wanted)
    attempts, refusal = _in_order(request, snapshot, sold, request.markets)
    if not attempts:
        raise refusal or _nothing_sold(request)
    may_buy = not request.spot_only and Market.ON_DEMAND not in request.markets
    others = (Market.ON_DEMAND,) if may_buy else ()
    on_demand, _ = _in_order(request, snapshot, sold, others)
    plan = _priced(request, snapshot, attempts, on_demand, limits)
    _check_credit(plan)
    budgets.check_own(plan, request)
    budgets.check_term(plan, request)
    return replace(plan, warnings=_warnings(plan, snapshot, sold))


def _sold(request: LaunchRequest, snapshot: Snapshot, wanted: Collection[str]) -> list[Offer]:
    """Leave out where AWS refused the type before; where that leaves nothing, AWS's own list of what it sells is believed once more."""
    listed = [
        o for o in snapshot.offers if o.type.name in wanted and o.place.region in request.regions
    ]
    return [o for o in listed if o.place not in snapshot.never] or listed


def check_request(
    request: LaunchRequest, types: Iterable[InstanceType], limits: Limits
) -> tuple[InstanceType, ...]:
    """
    Refuse what no region could serve, before anything is looked up.

    Returns:
        The types that meet the wish, see `types_for`.

    Raises:
        WrongUsage, Refused: As `plan_launch`.
    """
    _check_duration(request.duration, limits)
    return types_for(request, types)


def already_up(request: LaunchRequest, snapshot: Snapshot) -> Instance | None:
    """Return my live instance of the request's name, the newest if there are several."""
    live = [i for i in snapshot.instances if i.name == request.name and i.state.is_alive]
    return max(live, key=lambda i: (i.launched_at, i.id), default=None)


def ceiling_usd_per_hour(offer: Offer, request: LaunchRequest) -> Decimal:
    """
    Return the most an instance hour of this offer can cost.

    A spot price may rise while the instance runs, up to the cap; AWS's own cap is the on-demand price. Where neither is known we set
    a cap of twice today's price ourselves, see `spot_cap`.
    """
    if offer.place.market is Market.ON_DEMAND:
        return offer.usd_per_hour
    cap = spot_cap(offer, request)
    return cap if cap is not None else offer.on_demand_usd_per_hour or offer.usd_per_hour


def spot_cap(offer: Offer, request: LaunchRequest) -> Decimal | None:
    """Return the maximum price to send with a spot request; `None` leaves AWS's default, the on-demand price."""
    if request.max_usd_per_hour is not None:
        return request.max_usd_per_hour
    return None if offer.on_demand_usd_per_hour is not None else offer.usd_per_hour * 2


def _check_duration(duration: timedelta, limits: Limits) -> None:
    if duration > limits.duration:
        raise Refused(
            f"{_hours(duration)} h is over the {_hours(limits.duration)} h limit",
            hint=f"`--hours {_hours(limits.duration)}` and `gpulab extend` later, or raise `hours_limit` in the configuration",
        )
    if duration < timedelta(minutes=5):
        raise Refused("an instance lives at least 5 min", hint="`--hours 0.5` is half an hour")


def _hours(duration: timedelta) -> str:
    hours = Decimal(int(duration.total_seconds())) / _HOUR
    return f"{hours.quantize(Decimal('0.01')).normalize():f}"


def _in_order(
    request: LaunchRequest, snapshot: Snapshot, sold: Sequence[Offer], markets: Sequence[Market]
) -> tuple[tuple[Offer, ...], GpulabError | None]:
    """Narrow the offers step by step; with none left, say which step took the last ones."""
    offered = [o for o in sold if o.place.market in markets]
    cheap = _within_cap(request, offered)
    if not cheap:
        return (), _over_cap(request, offered) if offered else None
    roomy = [o for o in cheap if quotas.has_room(o, snapshot.quotas)]
    if not roomy:
        return (), _no_room(cheap, snapshot)
    return tuple(sorted(roomy, key=_failover_key(request, snapshot, roomy, markets))), None


def _within_cap(request: LaunchRequest, offers: Sequence[Offer]) -> list[Offer]:
    """Keep what is cheap enough: the user's cap, or else no dearer than the cheapest wish on demand."""
    if request.max_usd_per_hour is not None:
        return [o for o in offers if o.usd_per_hour <= request.max_usd_per_hour]
    known = [o.on_demand_usd_per_hour for o in offers if o.on_demand_usd_per_hour is not None]
    if not known or request.instance_type is not None:
        return list(offers)
    # Eight times the vCPUs for one GPU is not what somebody who asked for a T4 expects to pay for.
    return [o for o in offers if o.usd_per_hour <= min(known)]


def _failover_key(
    request: LaunchRequest,
    snapshot: Snapshot,
    offers: Sequence[Offer],
    markets: Sequence[Market],
) -> Callable[[Offer], tuple[object, ...]]:
    cheapest: dict[tuple[Market, str, str], Decimal] = {}
    for o in offers:
        kind = (o.place.market, o.place.region, o.type.name)
        cheapest[kind] = min(cheapest.get(kind, o.usd_per_hour), o.usd_per_hour)

    def key(o: Offer) -> tuple[object, ...]:
        return (
            markets.index(o.place.market),
            snapshot.is_full(o.place),
            request.regions.index(o.place.region),
            cheapest[(o.place.market, o.place.region, o.type.name)],
            o.type.name,
            o.usd_per_hour,
            o.place.zone,
        )

    return key


def _nothing_sold(request: LaunchRequest) -> Refused:
    wish = request.instance_type or request.gpu or "GPU"
    where = ", ".join(request.regions)
    return Refused(
        f"no zone of {where} sells a {wish} on {' or '.join(request.markets)}",
        hint="Name another region with `--region`; `gpulab prices` shows where there are some",
    )


def _over_cap(request: LaunchRequest, offers: Sequence[Offer]) -> Refused:
    best = min(offers, key=lambda o: (o.usd_per_hour, o.type.name, o.place.zone))
    return Refused(
        f"every offer is over ${_plain(request.max_usd_per_hour)}/h; the cheapest is"
        f" {best.type.name} in {best.place.zone} at ${_plain(best.usd_per_hour)}/h",
        hint=f"`--max-price {_plain(best.usd_per_hour)}` or more, or `gpulab prices` for other GPUs",
    )


def _plain(usd: Decimal | None) -> str:
    """Write a price with no more digits than it has, and at least cents: `0.05`, `0.1685`."""
    text = f"{usd or Decimal(0):f}"
    whole, _, digits = text.partition(".")
    return f"{whole}.{digits.rstrip('0').ljust(2, '0')}"


def _no_room(offers: Sequence[Offer], snapshot: Snapshot) -> GpulabError:
    """Choose the quota to complain about: the one of the smallest wish in the first region."""
    smallest = min(offers, key=lambda o: (o.type.vcpus, o.usd_per_hour, o.place.zone))
    quota = quotas.quota_for(smallest, snapshot.quotas)
    assert quota is not None
    return quotas.too_low(quota, smallest.type)


def _priced(
    request: LaunchRequest,
    snapshot: Snapshot,
    attempts: tuple[Offer, ...],
    on_demand: tuple[Offer, ...],
    limits: Limits,
) -> LaunchPlan:
    ends_at = snapshot.read_at + request.duration
    disk_gib = max(request.disk_gib, snapshot.root_gib)
    disk = max(_disk_usd_per_hour(o.place.region, disk_gib, snapshot, ends_at) for o in attempts)
    beside = disk + limits.address_usd_per_hour
    hours = Decimal(str(request.duration.total_seconds())) / _HOUR
    dearest = max(ceiling_usd_per_hour(o, request) for o in attempts)
    return LaunchPlan(
        request=budgets.with_own_budget(request, snapshot.term_budget),
        attempts=attempts,
        on_demand=on_demand,
        ends_at=ends_at,
        disk_gib=disk_gib,
        disk_usd_per_hour=disk,
        address_usd_per_hour=limits.address_usd_per_hour,
        at_most_usd=(dearest + beside) * hours,
        expected_usd=(attempts[0].usd_per_hour + beside) * hours,
        credit_left_usd=snapshot.credit_left_usd,
        term_budget=snapshot.term_budget,
    )


def _disk_usd_per_hour(
    region: str, disk_gib: int, snapshot: Snapshot, ends_at: datetime
) -> Decimal:
    """Price a disk by the shorter of the calendar months it touches, as AWS divides by the month's length."""
    days = min(calendar.monthrange(m.year, m.month)[1] for m in (snapshot.read_at, ends_at))
    return gp3_usd_per_gib_month(region) * disk_gib / (days * 24)


def _check_credit(plan: LaunchPlan) -> None:
    left = plan.credit_left_usd
    if left is None or plan.at_most_usd <= left:
        return
    fits = budgets.fitting_hours(plan, left)
    raise CreditTooLow(
        f"this may cost up to ${_cents(plan.at_most_usd)}, and ${_cents(left)} of your credit is left",
        hint=f"`--hours {fits}` fits, or cap the price with `--max-price {_plain(plan.attempts[0].usd_per_hour)}`"
        if fits != "0"
        else "Ask your teacher for more credit; `gpulab credit` shows where it went",
    )


def _cents(usd: Decimal) -> Decimal:
    return usd.quantize(Decimal("0.01"))


def _warnings(plan: LaunchPlan, snapshot: Snapshot, sold: Sequence[Offer]) -> tuple[str, ...]:
    return (
        *snapshot.notes,
        *_left_out_by_quota(plan, snapshot, sold),
        *_budget_warning(plan),
        *budgets.term_warning(plan),
        *_disk_warning(plan, snapshot),
        *_type_warning(plan),
    )


def _left_out_by_quota(
    plan: LaunchPlan, snapshot: Snapshot, sold: Sequence[Offer]
) -> tuple[str, ...]:
    regions_tried = {o.place.region for o in plan.attempts}
    out = {
        o.place.region: quotas.quota_for(o, snapshot.quotas)
        for o in sold
        if o.place.market in plan.request.markets
        and o.place.region not in regions_tried
        and not quotas.has_room(o, snapshot.quotas)
    }
    return tuple(
        f"{region} is left out: its quota {q.code} is {q.limit_vcpus} vCPUs, {q.used_vcpus or 0} in use"
        for region, q in sorted(out.items())
        if q is not None
    )


def _budget_warning(plan: LaunchPlan) -> tuple[str, ...]:
    budget = plan.request.budget_usd
    # Where the budget ends it first at today's price, that is said as its end already.
    if budget is None or budget >= plan.at_most_usd or budgets.lasts(plan) is not None:
        return ()
    return (f"the budget of ${budget:.2f} may end the instance before its time",)


def _disk_warning(plan: LaunchPlan, snapshot: Snapshot) -> tuple[str, ...]:
    if snapshot.root_gib <= plan.request.disk_gib:
        return ()
    return (f"the disk is {plan.disk_gib} GiB, as the image needs that much",)


def _type_warning(plan: LaunchPlan) -> tuple[str, ...]:
    """Say what a type lacks that was named exactly: a slip of the finger, or a price that was too good."""
    kind = plan.attempts[0].type
    said = []
    if not kind.gpus:
        said.append(f"{kind.name} has no GPU: everything is computed on its CPUs")
    if kind.memory_gib < _LEAST_GIB:
        said.append(
            f"{kind.name} has {kind.memory_gib.normalize():f} GiB of memory, which JupyterLab and TensorFlow in one notebook fill"
        )
    return tuple(said)
