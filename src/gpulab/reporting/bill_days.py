"""AWS's statements and the ledger side by side, an instance or disk and day a row. Every dollar of the statements is in one row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal

from gpulab.model.report import BillDay
from gpulab.model.statement import Category, Statement, StatementSum, usd_of

_COMPARED = ("instance", "ebs")


def is_compared(line: StatementSum) -> bool:
    """Whether a line is about an instance or a disk as such, which the ledger counts too."""
    return line.kind in _COMPARED and line.resource.startswith(("i-", "vol-"))


def bill_days(
    statements: Iterable[Statement], counted: Mapping[str, Mapping[date, Decimal]]
) -> tuple[BillDay, ...]:
    """
    List the days, those of the ledger that no statement knows included.

    Args:
        counted: By resource and day, what the ledger has.
    """
    billed: dict[tuple[date, str], dict[Category, int]] = defaultdict(lambda: defaultdict(int))
    for statement in statements:
        for line in statement.sums:
            resource = line.resource if is_compared(line) else ""
            billed[line.day, resource][line.category] += line.units
    ledger = {(day, r): usd for r, days in counted.items() for day, usd in days.items()}
    return tuple(
        BillDay(
            day,
            resource,
            ledger.get((day, resource), Decimal(0)) if resource else None,
            *(usd_of(billed.get((day, resource), {}).get(c, 0)) for c in Category),
        )
        for day, resource in sorted({*billed, *ledger})
    )
