"""The ledger's estimate against AWS's statements, per instance or volume and day. Hides tolerances; collects differences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

from gpulab.model.discrepancy import Discrepancy, DiscrepancyKind
from gpulab.model.report import Bill
from gpulab.model.statement import Category, Statement, usd_of
from gpulab.model.timeline import Charge, ChargeKind
from gpulab.reporting.bill_days import bill_days, is_compared
from gpulab.reporting.days import LocalDays
from gpulab.reporting.feed import without_doubles
from gpulab.spending.exact import Usd, seconds_between

# Apart by more than this share and this amount is named.
_SHARE = Decimal("0.01")
_LEAST_USD = Decimal("0.01")
_ByResource = dict[str, dict[date, Decimal]]


def reconcile(
    statements: Iterable[Statement], charges: Iterable[Charge], *, has_days: bool = False
) -> tuple[Bill, tuple[Discrepancy, ...]]:
    """
    Compare statements with the ledger's charges over the days that the statements cover.

    The same file given twice counts once; so does what a spot data feed and a full statement both bill.

    Args:
        has_days: Whether the bill lists every instance and disk by day.
    """
    read = {statement.digest: statement for statement in statements}.values()
    once, feed = without_doubles(read)
    covered = [statement.days for statement in once if statement.days]
    if not covered:
        return Bill(), tuple(_unreadable(read))
    billed = _billed(once)
    first, last = min(days[0] for days in covered), max(days[1] for days in covered)
    counted = _counted(charges, first, last)
    compared = [r for r in billed if r in counted]
    bill = Bill(
        by_category=_by_category(once),
        first_day=first,
        last_day=last,
        ledger_usd=sum((_total(counted[r]) for r in compared), Decimal(0)),
        statement_usd=sum((_total(billed[r]) for r in compared), Decimal(0)),
        left_out=tuple(sorted(name for one in once for name in one.instead_of)),
        feed=feed,
        days=bill_days(once, counted) if has_days else (),
    )
    return bill, (*_unreadable(read), *_differences(billed, counted))


def _by_category(statements: Iterable[Statement]) -> dict[str, Decimal]:
    found: dict[str, int] = defaultdict(int)
    for statement in statements:
        for category, units in statement.units.items():
            found[category.value] += units
    return {name: usd_of(units) for name, units in found.items()}


def _billed(statements: Iterable[Statement]) -> _ByResource:
    found: dict[str, dict[date, int]] = defaultdict(lambda: defaultdict(int))
    for statement in statements:
        for line in statement.sums:
            if line.category is Category.USAGE and is_compared(line):
                found[line.resource][line.day] += line.units
    return {r: {day: usd_of(n) for day, n in days.items()} for r, days in found.items()}


def _counted(charges: Iterable[Charge], first: date, last: date) -> _ByResource:
    exact: dict[str, dict[date, Usd]] = defaultdict(lambda: defaultdict(Usd))
    begin = datetime.combine(first, time(), UTC)
    end = datetime.combine(last, time(), UTC) + timedelta(days=1)
    days = LocalDays(begin, end, UTC)
    for charge in charges:
        if charge.kind is ChargeKind.IPV4:
            continue
        stop = charge.begins_at + timedelta(seconds=charge.seconds)
        for day, since, until in days.cut(max(charge.begins_at, begin), min(stop, end)):
            exact[charge.resource][day] += Usd.part(charge, seconds_between(since, until))
    return {r: {day: usd.rounded() for day, usd in sums.items()} for r, sums in exact.items()}


def _differences(
    billed: _ByResource, counted: Mapping[str, Mapping[date, Decimal]]
) -> Iterable[Discrepancy]:
    for resource in sorted({*billed, *counted}):
        ours, theirs = _total(counted.get(resource, {})), _total(billed.get(resource, {}))
        if max(ours, theirs) < _LEAST_USD:
            continue
        if resource not in counted:
            cause = f"AWS billed {theirs:.4f} USD for it and the ledger does not know it"
            yield Discrepancy(DiscrepancyKind.ONLY_IN_BILL, resource, cause)
        elif resource not in billed:
            cause = f"the ledger counts {ours:.4f} USD and no statement names it for these days"
            yield Discrepancy(DiscrepancyKind.ONLY_IN_LEDGER, resource, cause)
        elif abs(ours - theirs) > max(_LEAST_USD, theirs * _SHARE):
            cause = f"the ledger counts {ours:.4f} USD, AWS billed {theirs:.4f} USD{_worst(counted[resource], billed[resource])}"
            yield Discrepancy(DiscrepancyKind.BILL_DIFFERS, resource, cause)


def _worst(ours: Mapping[date, Decimal], theirs: Mapping[date, Decimal]) -> str:
    zero = Decimal(0)
    day = max({*ours, *theirs}, key=lambda d: (abs(ours.get(d, zero) - theirs.get(d, zero)), d))
    return f"; most apart on {day}: {ours.get(day, zero):.4f} and {theirs.get(day, zero):.4f}"


def _unreadable(statements: Iterable[Statement]) -> Iterable[Discrepancy]:
    for statement in statements:
        if statement.unreadable:
            cause = f"{statement.unreadable} of {statement.lines} lines have no amount in USD or no time; they are left out"
            yield Discrepancy(DiscrepancyKind.UNREADABLE_STATEMENT, statement.name, cause)


def _total(days: Mapping[date, Decimal]) -> Decimal:
    return sum(days.values(), Decimal(0))
