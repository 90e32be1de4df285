"""What is left of the credits, and who said so. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from gpulab.model.credit import Credit


@dataclass(frozen=True)
class SourceAnswer:
    """
    What one source of balances answered.

    Attributes:
        source: `billing:GetCredits`, `freetier:GetAccountPlanState`, `ce:GetCostAndUsage`, `typed`.
        credits: Of every state; may be empty.
        unavailable: Why it did not answer, as a half-sentence; empty when it did.
        notes: Sentences worth reading, such as what a free-plan account cannot do.
    """

    source: str
    read_at: datetime
    credits: tuple[Credit, ...] = ()
    unavailable: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spent:
    """
    What Cost Explorer says was charged and what credits paid, gross and apart.

    Attributes:
        by_record_type: `Usage`, `Credit` (negative), `Tax`, ...; USD.
    """

    begin: datetime
    end: datetime
    by_record_type: dict[str, Decimal]
    read_at: datetime


@dataclass(frozen=True)
class UnusableCredit:
    """A credit that will not pay for instances; `why` is a half-sentence."""

    credit: Credit
    why: str


@dataclass(frozen=True)
class Balance:
    """
    What is left, from the best source there is.

    Attributes:
        left_usd: `None` when no source knows; at least 0.
        source: The source of `left_usd`; empty with `None`.
        read_at: When that source was read; aware UTC.
        spent_since_usd: What the ledger counts since the reading; already taken off.
        credits: Those that pay for instances, the first to expire first.
        answers: Every source that was asked, in order.
    """

    left_usd: Decimal | None
    source: str
    read_at: datetime | None
    spent_since_usd: Decimal = Decimal(0)
    credits: tuple[Credit, ...] = ()
    unusable: tuple[UnusableCredit, ...] = ()
    answers: tuple[SourceAnswer, ...] = field(default=())
