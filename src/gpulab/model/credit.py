"""Credits and budgets. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal


@dataclass(frozen=True)
class Credit:
    """
    One credit of an account.

    Attributes:
        id: As the source names it.
        left_usd: What remains.
        initial_usd: What it began with; `None` if the source does not say.
        expires_at: Aware UTC; `None` if it does not expire or is not said.
        products: What it may pay; empty means everything.
        source: Which source said so: `billing:GetCredits`, `freetier:GetAccountPlanState`, `typed`.
        read_at: When it was read; aware UTC.
    """

    id: str
    left_usd: Decimal
    initial_usd: Decimal | None
    expires_at: datetime | None
    products: tuple[str, ...]
    source: str
    read_at: datetime
