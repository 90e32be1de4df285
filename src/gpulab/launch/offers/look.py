"""
Looking at AWS once, before a decision: prices, quotas, instances, credit. Hides what is remembered and for how long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from gpulab.aws import instances, market
from gpulab.aws.regions import ask_each
from gpulab.errors import AwsError, GpulabError
from gpulab.launch.account import images
from gpulab.launch.context import Context
from gpulab.launch.money.credit import credit_left_usd
from gpulab.launch.offers.places import full_places, never_places
from gpulab.model.instance import LaunchRequest, State
from gpulab.model.market import InstanceType, Market, Offer, Place, Quota, SpotPrice
from gpulab.planning.catalogue import instance_types, on_demand_prices
from gpulab.planning.quotas import CODES
from gpulab.planning.snapshot import Snapshot
from gpulab.planning.wishes import types_for

_PRICE_LIST = timedelta(days=7)
_QUOTA = timedelta(hours=1)


@dataclass(frozen=True)
class _Region:
    """What one region said."""

    prices: tuple[SpotPrice, ...]
    running: instances.RegionInstances
    limits: Mapping[tuple[str, Market], int | None]


def snapshot(
    context: Context, request: LaunchRequest, *, is_every_region_needed: bool = False
) -> Snapshot:
    """
    Read everything a plan needs, all regions at once.

    Args:
        is_every_region_needed: Whether one region that does not answer fails the whole; else it becomes a note.

    Raises:
        WrongUsage, Refused: Nobody knows the GPU or type; nothing was asked then.
        GpulabError: No region answered; the first region's error.
    """
    wanted = types_for(request, instance_types())
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(credit_left_usd, context, is_ledger_enough=True)
        answers = ask_each(request.regions, lambda region: _read(context, region, wanted, request))
        found = answers.or_raise()
        for error in answers.failed.values() if is_every_region_needed else ():
            raise error
        credit, credit_notes = asked.result()
    listed = _on_demand(context, found, wanted, is_every_type=False)
    return Snapshot(
        read_at=context.now(),
        types=instance_types(),
        offers=tuple(o for r, said in found.items() for o in _offers(r, said, wanted, listed)),
        quotas=tuple(q for r, said in found.items() for q in _quotas(r, said)),
        instances=tuple(i for said in found.values() for i in said.running.mine),
        full_until=full_places(context),
        never=never_places(context),
        root_gib=int(context.cache.get(root_gib_key(context, request.regions[0], wanted)) or 0),
        credit_left_usd=credit,
        notes=(
            *credit_notes,
            *_failed(answers.failed),
            *_old_prices(context.now(), found, wanted, listed),
        ),
    )


def spot_and_on_demand(
    context: Context, regions: Sequence[str], types: Sequence[InstanceType]
) -> tuple[Offer, ...]:
    """Read what is sold now and at what price, both markets; unsorted."""
    now = context.now()
    nothing = instances.RegionInstances((), {})

    def ask(region: str) -> _Region:
        prices = market.spot_prices(context.cloud, region, [t.name for t in types], now=now)
        return _Region(prices, nothing, {})

    found = ask_each(regions, ask).or_raise()
    listed = _on_demand(context, found, types, is_every_type=True)
    return tuple(o for r, said in found.items() for o in _offers(r, said, types, listed))


def root_gib_key(context: Context, region: str, types: Iterable[InstanceType]) -> str:
    """Name the cache entry that holds the size of the image's root snapshot."""
    has_gpu = any(t.gpus for t in types)
    return f"{context.account}/image/{region}/{'gpu' if has_gpu else 'plain'}/root_gib"


def _read(
    context: Context, region: str, wanted: Sequence[InstanceType], request: LaunchRequest
) -> _Region:
    """
    Ask one region; its three questions go out together.

    An image that somebody else makes shows in what was asked anyway: its test instance, which EC2 remembers for an hour after its end.
    """
    names, owner = sorted(t.name for t in wanted), context.profile.owner
    questions: dict[str, Callable[[], Any]] = {
        "prices": lambda: market.spot_prices(context.cloud, region, names, now=context.now()),
        "running": lambda: instances.in_region(context.cloud, region, owner=owner, with_ended=True),
        "limits": lambda: _limits(context, region, wanted, request),
    }
    said = ask_each(questions, lambda name: questions[name]())
    for error in said.failed.values():
        raise error
    found = _Region(**said.by_region)
    if found.running.is_baking:
        images.forget_none(context, region)
    alive = tuple(i for i in found.running.mine if i.state is not State.TERMINATED)
    return replace(found, running=replace(found.running, mine=alive))


def _limits(
    context: Context, region: str, wanted: Sequence[InstanceType], request: LaunchRequest
) -> dict[tuple[str, Market], int | None]:
    families = sorted({t.quota_family for t in wanted})
    # Families share codes on demand (P and P5); each code is asked for once.
    return {
        (f, m): _limit(context, region, f, m, wanted) for f in families for m in request.markets
    }


def _limit(
    context: Context, region: str, family: str, sold: Market, wanted: Sequence[InstanceType]
) -> int | None:
    key = f"{context.account}/quota/{region}/{CODES[(family, sold)].code}"
    known = context.cache.get(key)
    if known is not None:
        return int(known)
    limit = market.quota_limit(context.cloud, region, family, sold)
    if limit is not None and limit >= min(t.vcpus for t in wanted):
        # One that is too low is not remembered: the user is about to have it raised.
        context.cache.put(key, limit, lasting=_QUOTA)
    return limit


def _on_demand(
    context: Context,
    found: Mapping[str, _Region],
    wanted: Sequence[InstanceType],
    *,
    is_every_type: bool,
) -> dict[tuple[str, str], Decimal]:
    """
    Find on-demand prices: remembered, else shipped and not old, else today's price list.

    The price list takes a call for each type; unless every type is wanted, it is asked for the smallest one only.
    """
    prices: dict[tuple[str, str], Decimal] = {}
    for region, said in found.items():
        sold = {p.instance_type for p in said.prices}
        types = sorted((t for t in wanted if t.name in sold), key=lambda t: (t.vcpus, t.name))
        for n, kind in enumerate(types):
            may_ask = is_every_type or n == 0
            price = _on_demand_price(context, region, kind.name, may_ask=may_ask)
            if price is not None:
                prices[(region, kind.name)] = price
    return prices


def _on_demand_price(context: Context, region: str, kind: str, *, may_ask: bool) -> Decimal | None:
    key = f"on-demand/{region}/{kind}"
    known = context.cache.get(key)
    if known:
        return Decimal(known)
    shipped = on_demand_prices().get((region, kind))
    if known is not None:
        # The price list was asked and did not say.
        return shipped.usd_per_hour if shipped else None
    if shipped is not None and not (may_ask and shipped.is_old(context.now())):
        return shipped.usd_per_hour
    if not may_ask:
        return None
    try:
        live = market.on_demand_price(context.cloud, region, kind)
    except AwsError:
        # A price list that is busy stops no launch; it is asked again the next time.
        return shipped.usd_per_hour if shipped else None
    context.cache.put(key, str(live or ""), lasting=_PRICE_LIST)
    return live if live is not None else shipped.usd_per_hour if shipped else None


def _offers(
    region: str,
    said: _Region,
    wanted: Sequence[InstanceType],
    listed: Mapping[tuple[str, str], Decimal],
) -> Iterable[Offer]:
    """Make offers of prices; on demand, a type is sold in the zones that sell it on spot."""
    types = {t.name: t for t in wanted}
    for price in said.prices:
        on_demand = listed.get((region, price.instance_type))
        kind = types[price.instance_type]
        spot = Place(region, price.zone, kind.name, Market.SPOT)
        yield Offer(spot, kind, price.usd_per_hour, on_demand, price.seen_at)
        if on_demand is not None:
            fixed = replace(spot, market=Market.ON_DEMAND)
            yield Offer(fixed, kind, on_demand, on_demand, price.seen_at)


def _quotas(region: str, said: _Region) -> Iterable[Quota]:
    for (family, sold), limit in said.limits.items():
        code = CODES[(family, sold)]
        used = said.running.used_vcpus.get((family, sold), 0)
        yield Quota(code.code, code.name, region, family, sold, limit, used)


def _failed(failed: Mapping[str, GpulabError]) -> tuple[str, ...]:
    return tuple(f"{region} is left out: {error.message}" for region, error in failed.items())


def _old_prices(
    now: datetime,
    found: Mapping[str, _Region],
    wanted: Sequence[InstanceType],
    listed: Mapping[tuple[str, str], Decimal],
) -> tuple[str, ...]:
    shipped = on_demand_prices()
    old = [
        shipped[(r, t.name)]
        for r in found
        for t in wanted
        if (r, t.name) in shipped
        and shipped[(r, t.name)].is_old(now)
        and listed.get((r, t.name)) == shipped[(r, t.name)].usd_per_hour
    ]
    if not old:
        return ()
    return (f"on-demand prices are of {old[0].as_of:%Y-%m-%d}; AWS may have changed them",)
