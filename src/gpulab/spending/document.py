"""The cost timeline, version 1: its input read strictly, its answer rendered to the letter. Hides JSON; refuses guesses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from gpulab.errors import WrongUsage
from gpulab.model.market import Market
from gpulab.model.timeline import (
    NO_PRICES,
    AddressLife,
    Charge,
    ChargeKind,
    Costs,
    InstanceLife,
    PriceSeries,
    Timeline,
    VolumeLife,
)
from gpulab.spending.credits import use_credit
from gpulab.spending.events import EVENT_TYPES, Event, runs_of
from gpulab.spending.exact import Usd
from gpulab.spending.strict_json import Fields, Node, read_json

_EPOCH_PRICE_AT = datetime.fromisoformat("1970-01-01T00:00:00+00:00")

# `os` of an instance and `product` of a price series, in EC2's words. Both systems are billed by the second and
# have the free first hour; SUSE has neither, so it is refused rather than charged wrongly.
_PRODUCTS = {
    "Linux": "Linux/UNIX",
    "Linux/UNIX": "Linux/UNIX",
    "Linux/UNIX (Amazon VPC)": "Linux/UNIX",
    "Windows": "Windows",
    "Windows (Amazon VPC)": "Windows",
}

_TOP = (
    "as_of",
    "assume_timezone",
    "spot_prices",
    "on_demand",
    "rates",
    "instances",
    "volumes",
    "elastic_ips",
    "credit",
)


@dataclass(frozen=True)
class CostDocument:
    """
    One document, read.

    Attributes:
        as_of: Up to when open things are billed; `None` means up to now.
        credit_usd: `None` when no credit is given.
    """

    timeline: Timeline
    as_of: datetime | None
    credit_usd: Decimal | None


def read_document(content: bytes) -> CostDocument:
    """
    Read a cost timeline.

    Raises:
        WrongUsage: A value is malformed, unknown or contradicts another; the message names its JSON path.
            A time without an offset is `naive_timestamp`.
    """
    top = read_json(content).fields(optional=_TOP)
    zone = _zone(top.given("assume_timezone"))
    as_of = top.given("as_of")
    prices = _Prices.read(top, zone)
    timeline = Timeline(
        instances=tuple(_unique_ids(top, "instances", _instance, prices, zone)),
        volumes=tuple(_unique_ids(top, "volumes", _volume, prices, zone)),
        addresses=tuple(_address(node, prices, zone) for node in top.listed("elastic_ips")),
    )
    credit = top.given("credit")
    return CostDocument(
        timeline=timeline,
        as_of=as_of.moment(zone) if as_of else None,
        credit_usd=credit.fields(required=("amount",))["amount"].usd() if credit else None,
    )


def render(costs: Costs, *, credit_usd: Decimal | None) -> dict[str, Any]:
    """
    Answer a cost timeline.

    Raises:
        WrongUsage: Something ran whose price the document does not give.
    """
    if costs.unpriced:
        missing = costs.unpriced[0]
        raise WrongUsage(
            f"missing_price: {missing.resource} needs {missing.what}",
            hint="Add it to `spot_prices`, `on_demand` or `rates`; a missing price is not zero",
        )
    answer: dict[str, Any] = {"price_rule": costs.price_rule.value, **_sums(costs.charges)}
    answer["billed_instance_seconds"] = costs.billed_instance_seconds
    if costs.owners:
        answer["by_owner"] = _by_owner(costs)
    if credit_usd is not None:
        answer |= _credit(credit_usd, costs.charges)
    return answer


def _zone(node: Node | None) -> tzinfo | None:
    if node is None:
        return None
    try:
        return ZoneInfo(node.text())
    except (KeyError, ValueError, OSError):
        node.refuse("is not the name of a time zone", "Such as Europe/Copenhagen")


@dataclass(frozen=True)
class _Prices:
    """Every price the document gives."""

    spot: dict[tuple[str, str, str], PriceSeries]
    on_demand: dict[str, Decimal]
    ebs: dict[str, Decimal]
    ipv4: Decimal | None

    @classmethod
    def read(cls, top: Fields, zone: tzinfo | None) -> _Prices:
        rates = top.given("rates")
        known = rates.fields(optional=("ebs_gb_month", "ipv4_per_hour")) if rates else None
        ipv4 = known.given("ipv4_per_hour") if known else None
        return cls(
            spot=_spot_series(top.listed("spot_prices"), zone),
            on_demand=_amounts(top.given("on_demand")),
            ebs=_amounts(known.given("ebs_gb_month")) if known else {},
            ipv4=ipv4.usd() if ipv4 else None,
        )


def _amounts(node: Node | None) -> dict[str, Decimal]:
    return {key: value.usd() for key, value in node.entries()} if node else {}


def _spot_series(
    nodes: Iterable[Node], zone: tzinfo | None
) -> dict[tuple[str, str, str], PriceSeries]:
    points: dict[tuple[str, str, str], dict[datetime, Decimal]] = {}
    for node in nodes:
        given = node.fields(required=("az", "instance_type", "points"), optional=("product",))
        product = given.given("product")
        key = (
            given["az"].text(),
            given["instance_type"].text(),
            product.choice(_PRODUCTS) if product else "Linux/UNIX",
        )
        for point in given["points"].items():
            at, usd = _price_point(point, zone)
            if points.setdefault(key, {}).setdefault(at, usd) != usd:
                point.refuse("gives a second price for the same moment")
    return {key: _series(known) for key, known in points.items()}


def _price_point(node: Node, zone: tzinfo | None) -> tuple[datetime, Decimal]:
    pair = list(node.items())
    if len(pair) != 2:
        node.refuse("is not a pair of a time and an amount")
    return pair[0].moment(zone), pair[1].usd()


def _series(points: dict[datetime, Decimal]) -> PriceSeries:
    at = tuple(sorted(points))
    return PriceSeries(at, tuple(points[moment] for moment in at))


def _unique_ids(
    top: Fields, key: str, read: Any, prices: _Prices, zone: tzinfo | None
) -> Iterator[Any]:
    """Read the members of an array; an id that comes twice would be charged twice."""
    seen: dict[str, str] = {}
    for node in top.listed(key):
        thing = read(node, prices, zone)
        first = seen.setdefault(thing.id, node.path)
        if first != node.path:
            node.refuse(f"has the id of {first}, `{thing.id}`")
        yield thing


def _instance(node: Node, prices: _Prices, zone: tzinfo | None) -> InstanceLife:
    given = node.fields(
        required=("instance_type", "market", "events"),
        optional=("id", "owner", "az", "os", "public_ipv4"),
    )
    market: Market = given["market"].choice({m.value: m for m in Market})
    az = given["az"].text() if market is Market.SPOT or given.given("az") else ""
    kind = given["instance_type"].text()
    os = given.given("os")
    product = os.choice(_PRODUCTS) if os else "Linux/UNIX"
    address = given.given("public_ipv4")
    return InstanceLife(
        id=_name(given, "id") or node.path,
        owner=_name(given, "owner"),
        instance_type=kind,
        zone=az,
        market=market,
        runs=runs_of(_event(event, zone) for event in given["events"].items()),
        prices=_on_demand(prices, kind)
        if market is Market.ON_DEMAND
        else prices.spot.get((az, kind, product), NO_PRICES),
        has_public_ipv4=bool(address and address.choice({"auto": True})),
        ipv4_usd_per_hour=prices.ipv4,
    )


def _on_demand(prices: _Prices, instance_type: str) -> PriceSeries:
    usd = prices.on_demand.get(instance_type)
    return NO_PRICES if usd is None else PriceSeries((_EPOCH_PRICE_AT,), (usd,))


def _event(node: Node, zone: tzinfo | None) -> Event:
    given = node.fields(required=("at", "type"))
    return Event(
        at=given["at"].moment(zone), type=given["type"].choice(EVENT_TYPES), place=node.path
    )


def _volume(node: Node, prices: _Prices, zone: tzinfo | None) -> VolumeLife:
    given = node.fields(
        required=("type", "size_gb", "created"), optional=("id", "owner", "deleted")
    )
    kind = given["type"].text()
    created, deleted = _span(given, "created", "deleted", zone)
    return VolumeLife(
        id=_name(given, "id") or node.path,
        owner=_name(given, "owner"),
        type=kind,
        size_gb=given["size_gb"].size(),
        usd_per_gb_month=prices.ebs.get(kind),
        created_at=created,
        deleted_at=deleted,
    )


def _address(node: Node, prices: _Prices, zone: tzinfo | None) -> AddressLife:
    given = node.fields(required=("allocated",), optional=("id", "owner", "released"))
    allocated, released = _span(given, "allocated", "released", zone)
    return AddressLife(
        id=_name(given, "id") or node.path,
        owner=_name(given, "owner"),
        usd_per_hour=prices.ipv4,
        allocated_at=allocated,
        released_at=released,
    )


def _name(given: Fields, key: str) -> str | None:
    node = given.given(key)
    return node.text() if node else None


def _span(
    given: Fields, begin_key: str, end_key: str, zone: tzinfo | None
) -> tuple[datetime, datetime | None]:
    begin, last = given[begin_key].moment(zone), given.given(end_key)
    end = last.moment(zone) if last else None
    if last and end and end < begin:
        last.refuse(f"is before `{begin_key}`")
    return begin, end


def _sums(charges: Iterable[Charge]) -> dict[str, Any]:
    paid = tuple(charges)
    sums = {kind.value: Usd.of(c for c in paid if c.kind is kind) for kind in ChargeKind}
    total = sum(sums.values(), Usd())
    shown: dict[str, Any] = {kind: _decimals(amount) for kind, amount in sums.items()}
    return {**shown, "total": _decimals(total), "total_cents": total.cents}


def _by_owner(costs: Costs) -> dict[str, dict[str, Any]]:
    owned: dict[str, list[Charge]] = {owner: [] for owner in costs.owners}
    for charge in costs.charges:
        if charge.owner is not None:
            owned[charge.owner].append(charge)
    return {owner: _sums(charges) for owner, charges in owned.items()}


def _credit(amount_usd: Decimal, charges: tuple[Charge, ...]) -> dict[str, Any]:
    use = use_credit(amount_usd, charges)
    return {
        "credit_used": _decimals(use.used),
        "credit_left": _decimals(use.left),
        "out_of_pocket": _decimals(use.out_of_pocket),
        "exhausted_at": f"{use.exhausted_at:%Y-%m-%dT%H:%M:%SZ}" if use.exhausted_at else None,
    }


def _decimals(amount: Usd) -> str:
    return format(amount.rounded(10), "f")
