"""R6: spot prices that move, deterministic by seed, and DescribeSpotPriceHistory over them."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import catalogue, moto_bridge, paging
from gpulab.sandbox.calls import Answer, Call, Forward
from gpulab.sandbox.filters import Finder, check, matches, timestamp
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

_ANCHOR = datetime(2026, 1, 1, tzinfo=UTC)
_PERIOD = timedelta(days=95)
_HISTORY = timedelta(days=90)
_QUERIES_KEPT = 4
_LINUX, _WINDOWS = "Linux/UNIX", "Windows"
#: What a Windows licence adds per vCPU-hour; only there so that a caller who forgets the product sees two prices.
_WINDOWS_USD_PER_VCPU = Decimal("0.046")

Change = tuple[datetime, Decimal]


class SpotPrices:
    """
    The price of every (type, zone) at every moment.

    Args:
        seed: Which series each place gets.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._set: dict[tuple[str, str], list[Change]] = {}
        self._queries: dict[str, list[dict[str, Any]]] = {}

    def set_price(self, instance_type: str, zone: str, usd: Decimal, at: datetime) -> None:
        """From `at` on the price is this, until it is set again."""
        self._set.setdefault((instance_type, zone), []).append((at, usd))

    def price(self, instance_type: str, zone: str, at: datetime) -> Decimal:
        """The Linux price in force at a moment, USD per hour."""
        return self.changes(instance_type, zone, at, at)[0][1]

    def changes(
        self, instance_type: str, zone: str, first: datetime, last: datetime
    ) -> list[Change]:
        """The price in force at `first`, and every change up to `last`; oldest first, never empty."""
        found = list(self._simulated(instance_type, zone, first, last))
        for at, usd in self._set.get((instance_type, zone), []):
            if at <= last:
                found = [change for change in found if change[0] < at] + [(at, usd)]
        later = [change for change in found if change[0] > first]
        in_force = [change for change in found if change[0] <= first][-1:]
        return in_force + later

    def rows_of(self, call: Call, make: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The rows of a query: made anew for its first page, kept for the pages that follow."""
        asked = {k: v for k, v in call.params.items() if k not in ("NextToken", "MaxResults")}
        query = f"{call.account}/{call.region}/{asked}"
        if call.params.get("NextToken") and query in self._queries:
            return self._queries[query]
        self._queries[query] = rows = make()
        while len(self._queries) > _QUERIES_KEPT:
            self._queries.pop(next(iter(self._queries)))
        return rows

    def _simulated(
        self, instance_type: str, zone: str, first: datetime, last: datetime
    ) -> Iterator[Change]:
        all_series = catalogue.spot_series()
        series = all_series[self._number(instance_type, zone) % len(all_series)]
        usd = catalogue.on_demand_price(instance_type, zone.rstrip("abcdefghijklmnopqrstuvwxyz"))
        # A place of its own in the cycle, so that two places with one series do not move together.
        shift = timedelta(seconds=self._number(zone, instance_type) % int(_PERIOD.total_seconds()))
        cycle = (first - _ANCHOR - shift) // _PERIOD - 1
        while (began := _ANCHOR + shift + cycle * _PERIOD) <= last:
            offsets = [offset for offset, _ in series]
            start = max(0, bisect.bisect_right(offsets, (first - began).total_seconds()) - 1)
            for offset, ratio in series[start:]:
                at = began + timedelta(seconds=offset)
                if at > last:
                    break
                yield at, (usd * ratio).quantize(Decimal("0.0001"))
            cycle += 1

    def _number(self, *words: str) -> int:
        digest = hashlib.sha256("/".join((str(self._seed), *words)).encode()).digest()
        return int.from_bytes(digest[:6], "big")


def describe_spot_price_history(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DescribeSpotPriceHistory: newest first, the price in force at StartTime included, at most 1000 rows a page."""
    params = call.params
    rows = world.prices.rows_of(call, lambda: _sorted_rows(world, call))
    page, token = paging.page(rows, params, largest=1000, default=1000)
    return write_result(call, {"SpotPriceHistory": page, "NextToken": token})


def _sorted_rows(world: World, call: Call) -> list[dict[str, Any]]:
    wanted = call.params.get("Filters", [])
    check(wanted, _FILTERS)
    rows = [row for row in _rows(world, call) if matches(row, wanted, _FILTERS)]
    rows.sort(key=lambda row: row["AvailabilityZone"] + row["InstanceType"])
    rows.sort(key=lambda row: row["Timestamp"], reverse=True)
    return rows


_FILTERS: Mapping[str, Finder] = {
    "availability-zone": "AvailabilityZone",
    "availability-zone-id": "AvailabilityZoneId",
    "instance-type": "InstanceType",
    "product-description": "ProductDescription",
    "spot-price": "SpotPrice",
    "timestamp": lambda row: [timestamp(row["Timestamp"])],
}


def _rows(world: World, call: Call) -> Iterator[dict[str, Any]]:
    params = call.params
    now = world.now()
    last = min(_aware(params.get("EndTime"), now), now)
    first = max(_aware(params.get("StartTime"), now - _HISTORY), now - _HISTORY)
    wanted = params.get("InstanceTypes") or catalogue.listed()
    products = params.get("ProductDescriptions") or [_LINUX, _WINDOWS]
    for zone, zone_id in moto_bridge.zones(call.region):
        if params.get("AvailabilityZone", zone) != zone:
            continue
        for name in wanted:
            if zone not in moto_bridge.offered_in(name, call.region):
                continue
            found = world.prices.changes(name, zone, min(first, last), last)
            for product in (_LINUX, _WINDOWS):
                if not _asked(product, products):
                    continue
                extra = _extra(name, product)
                for at, usd in found:
                    yield {
                        "AvailabilityZone": zone,
                        "AvailabilityZoneId": zone_id,
                        "InstanceType": name,
                        "ProductDescription": product,
                        "SpotPrice": f"{usd + extra:.6f}",
                        "Timestamp": at,
                    }


def _asked(product: str, products: list[str]) -> bool:
    # "Linux/UNIX (Amazon VPC)" is the name EC2-Classic times left behind; EC2 still takes it.
    return any(word.removesuffix(" (Amazon VPC)") == product for word in products)


def _extra(instance_type: str, product: str) -> Decimal:
    found = catalogue.facts(instance_type)
    return _WINDOWS_USD_PER_VCPU * found.vcpus if found and product == _WINDOWS else Decimal(0)


def _aware(moment: datetime | None, default: datetime) -> datetime:
    if moment is None:
        return default
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


OPERATIONS: Mapping[str, Any] = {"DescribeSpotPriceHistory": describe_spot_price_history}
