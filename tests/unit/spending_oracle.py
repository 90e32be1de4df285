"""
The cost timeline computed a second time, another way: second by second, in whole numbers, straight from the document.

Slow and plain on purpose; it shares no code with `gpulab.spending` and holds only for well-formed documents.
"""

from __future__ import annotations

import calendar
from collections import Counter, defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from functools import cache
from zoneinfo import ZoneInfo

# A dollar in whole numbers so small that a second of any price here is whole.
SCALE = 10**14 * 86400 * 28 * 29 * 30 * 31
IPV4_FROM = int(datetime(2024, 2, 1, tzinfo=UTC).timestamp())


def oracle(document: dict, rule: str) -> dict:
    """Answer a document by adding up every second of everything."""
    book = _Book()
    for thing in document.get("instances", []):
        _instance(thing, document, rule, book)
    for thing in document.get("volumes", []):
        _volume(thing, document, book)
    for thing in document.get("elastic_ips", []):
        first = _epoch(thing["allocated"], document)
        _address(first, _end(thing["released"], document), thing.get("owner"), document, book)
    return book.answer(document, rule)


class _Book:
    def __init__(self) -> None:
        self.seconds: dict[int, int] = defaultdict(int)
        self.kinds: Counter = Counter()
        self.owners: dict[str, Counter] = {}
        self.billed = 0

    def know(self, owner: str | None) -> None:
        if owner is not None:
            self.owners.setdefault(owner, Counter())

    def pay(self, second: int, usd: int, kind: str, owner: str | None) -> None:
        self.seconds[second] += usd
        self.kinds[kind] += usd
        if owner is not None:
            self.owners[owner][kind] += usd

    def answer(self, document: dict, rule: str) -> dict:
        found = {"price_rule": rule, **_shown(self.kinds), "billed_instance_seconds": self.billed}
        if self.owners:
            found["by_owner"] = {name: _shown(sums) for name, sums in self.owners.items()}
        if "credit" in document:
            credit = _whole(document["credit"]["amount"])
            total = sum(self.kinds.values())
            found["credit_used"] = _ten(min(credit, total))
            found["credit_left"] = _ten(max(credit - total, 0))
            found["out_of_pocket"] = _ten(max(total - credit, 0))
            found["exhausted_at"] = self._exhausted(credit)
        return found

    def _exhausted(self, credit: int) -> str | None:
        accrued = 0
        for second in sorted(self.seconds):
            if accrued >= credit:
                return _iso(second)
            accrued += self.seconds[second]
            if accrued >= credit:
                return _iso(second + 1)
        return None


def _instance(thing: dict, document: dict, rule: str, book: _Book) -> None:
    book.know(thing.get("owner"))
    for first, end, ended_by_aws in _runs(thing, document):
        if thing.get("public_ipv4"):
            _address(first, end, thing.get("owner"), document, book)
        is_spot = thing["market"] == "spot"
        if end < first or (is_spot and ended_by_aws and end - first < 3600):
            continue
        billed = max(60, end - first)
        book.billed += billed
        for n in range(billed):
            at = min(n, max(0, end - first - 1))
            asked = first + (at // 3600 * 3600 if rule == "hour-start" else at)
            price = _spot(thing, document, asked) if is_spot else _listed(thing, document)
            book.pay(first + n, price // 3600, "instance", thing.get("owner"))


def _runs(thing: dict, document: dict) -> list[tuple[int, int, bool]]:
    # In the drawn timelines a run may have no length, but a pause always has: a start comes before its own stop.
    events = sorted(
        (_epoch(e["at"], document), e["type"] not in ("launch", "start"), e["type"])
        for e in thing["events"]
    )
    found, since = [], None
    for at, _, kind in events:
        if kind in ("launch", "start"):
            since = at
        elif since is not None:
            found.append((since, at, kind.startswith("aws")))
            since = None
    if since is not None:
        found.append((since, _epoch(document["as_of"], document), False))
    return found


def _spot(thing: dict, document: dict, asked: int) -> int:
    best = None
    for series in document["spot_prices"]:
        if (series["az"], series["instance_type"]) != (thing["az"], thing["instance_type"]):
            continue
        for at, usd in series["points"]:
            moment = _epoch(at, document)
            if moment <= asked and (best is None or moment > best[0]):
                best = (moment, usd)
    return _whole(best[1])


def _listed(thing: dict, document: dict) -> int:
    return _whole(document["on_demand"][thing["instance_type"]])


def _volume(thing: dict, document: dict, book: _Book) -> None:
    book.know(thing.get("owner"))
    first, end = _epoch(thing["created"], document), _end(thing["deleted"], document)
    if end < first:
        return
    rate = _whole(document["rates"]["ebs_gb_month"][thing["type"]]) * thing["size_gb"]
    for n in range(max(60, end - first)):
        day = datetime.fromtimestamp(first + min(n, max(0, end - first - 1)), UTC)
        month_s = calendar.monthrange(day.year, day.month)[1] * 86400
        book.pay(first + n, rate // month_s, "ebs", thing.get("owner"))


def _address(first: int, end: int, owner: str | None, document: dict, book: _Book) -> None:
    book.know(owner)
    for second in range(first, end):
        if second >= IPV4_FROM:
            usd = _whole(document["rates"]["ipv4_per_hour"]) // 3600
            book.pay(second, usd, "ipv4", owner)


@cache
def _whole(text: str) -> int:
    whole = Fraction(text) * SCALE
    assert whole.denominator == 1
    return whole.numerator


_EPOCHS: dict[tuple[str, str | None], int] = {}


def _epoch(text: str, document: dict) -> int:
    key = (text, document.get("assume_timezone"))
    if key not in _EPOCHS:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=ZoneInfo(document["assume_timezone"]))
        _EPOCHS[key] = int(moment.timestamp())
    return _EPOCHS[key]


def _end(text: str | None, document: dict) -> int:
    return _epoch(text or document["as_of"], document)


def _shown(sums: Counter) -> dict:
    kinds = {kind: sums.get(kind, 0) for kind in ("instance", "ebs", "ipv4")}
    total = sum(kinds.values())
    cents = _rounded(total, 2)
    return {
        **{k: _ten(v) for k, v in kinds.items()},
        "total": _ten(total),
        "total_cents": cents,
    }


def _ten(value: int) -> str:
    return format(Decimal(_rounded(value, 10)).scaleb(-10), "f")


def _rounded(value: int, places: int) -> int:
    """Half up: a half and more goes to the next."""
    return int(Fraction(value * 10**places, SCALE) + Fraction(1, 2))


def _iso(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%SZ}"
