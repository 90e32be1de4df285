"""Lines of AWS's own statements, added up by resource and day. Values only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Context, Decimal
from enum import StrEnum
from functools import cached_property
from typing import NamedTuple


class Category(StrEnum):
    """What kind of money a line is: usage is gross, before credits."""

    USAGE = "usage"
    CREDIT = "credit"
    TAX = "tax"
    OTHER = "other"


_DECIMALS = 10
_EXACT = Context(prec=60)


def usd_of(units: int) -> Decimal:
    """Return whole 1e-10 USD as an amount."""
    return _EXACT.scaleb(Decimal(units), -_DECIMALS)


def units_of(usd: Decimal) -> int:
    """Return an amount of at most ten decimals in whole 1e-10 USD."""
    return int(_EXACT.scaleb(usd, _DECIMALS))


class StatementSum(NamedTuple):
    """
    What one resource cost on one UTC day.

    Attributes:
        resource: Instance or volume id; empty for what belongs to no resource.
        kind: `instance`, `ebs`, `ipv4`, `transfer` or `other`.
        units: Whole 1e-10 USD, the last decimal that AWS bills; negative for credits. A term's bill has hundreds of thousands of sums, and
            whole numbers are made and added in a quarter of the time.
    """

    day: date
    resource: str
    category: Category
    kind: str
    units: int

    @property
    def usd(self) -> Decimal:
        """The amount, to ten decimals."""
        return usd_of(self.units)


@dataclass(frozen=True)
class Statement:
    """
    One billing export, read.

    Attributes:
        name: Of the file, without its folder.
        format: `cur-legacy`, `cur-2.0`, `focus` or `spot-feed`.
        digest: SHA-256 of the file.
        lines: Lines read.
        unreadable: Lines left out because their amount or time is none, or not in USD.
        instead_of: Names of files that hold the same bill, older or in another format, and were not read.
        path: The file as it was named.
        whole_until: The last UTC day of which a bill that goes on has all hours; `None` where it is final, or nobody asked.
    """

    name: str
    format: str
    digest: str
    lines: int
    unreadable: int
    sums: tuple[StatementSum, ...] = field(default=())
    instead_of: tuple[str, ...] = ()
    path: str = ""
    whole_until: date | None = None

    @cached_property
    def days(self) -> tuple[date, date] | None:
        """The first and the last UTC day with an amount; `None` without any."""
        days = [line.day for line in self.sums]
        return (min(days), max(days)) if days else None

    @cached_property
    def units(self) -> Mapping[Category, int]:
        """Whole 1e-10 USD of each category that it has."""
        found: dict[Category, int] = defaultdict(int)
        for line in self.sums:
            found[line.category] += line.units
        return found


@dataclass(frozen=True, slots=True)
class StatementRead:
    """
    That a statement was read, as the ledger remembers it.

    Attributes:
        path: The file as it was named.
        first_day, last_day: UTC days with an amount; `None` when it had none.
        by_category: USD, gross usage, credit and tax apart.
    """

    digest: str
    read_at: datetime
    path: str
    format: str
    lines: int
    first_day: date | None
    last_day: date | None
    by_category: Mapping[Category, Decimal]
