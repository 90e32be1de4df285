"""What does not add up in a ledger, a roster or a bill: collected and shown together. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DiscrepancyKind(StrEnum):
    """What is wrong, in one word that scripts can count."""

    UNREADABLE_FACT = "unreadable-fact"
    NO_LAUNCH = "no-launch"
    NO_END = "no-end"
    NO_PRICE = "no-price"
    PRICE_GAP = "price-gap"
    ENDED_BY_UNKNOWN = "ended-by-unknown"
    UNKNOWN_OWNER = "unknown-owner"
    ONLY_IN_BILL = "only-in-bill"
    ONLY_IN_LEDGER = "only-in-ledger"
    BILL_DIFFERS = "bill-differs"
    UNREADABLE_STATEMENT = "unreadable-statement"
    OVER_BUDGET = "over-budget"


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """
    One thing that does not add up.

    Attributes:
        subject: Id of the instance, volume, launch or student.
        cause: One sentence that says what was found and what it does to the sums.
    """

    kind: DiscrepancyKind
    subject: str
    cause: str
