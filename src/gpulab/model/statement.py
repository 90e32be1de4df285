"""Lines of AWS's own statements, added up by resource and day. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple


class Category(StrEnum):
    """What kind of money a line is: usage is gross, before credits."""

    USAGE = "usage"
    CREDIT = "credit"
    TAX = "tax"
    OTHER = "other"


class StatementSum(NamedTuple):
    """
    What one resource cost on one UTC day.

    Attributes:
        resource: Instance or volume id; empty for what belongs to no resource.
        kind: `instance`, `ebs`, `ipv4`, `transfer` or `other`.
        usd: Negative for credits.
    """

    day: date
    resource: str
    category: Category
    kind: str
    usd: Decimal


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
    """

    name: str
    format: str
    digest: str
    lines: int
    unreadable: int
    sums: tuple[StatementSum, ...] = field(default=())
    instead_of: tuple[str, ...] = ()
