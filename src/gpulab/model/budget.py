"""What the user allows for a term, and how much of it is gone. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

# At which shares of a budget people are warned, in percent.
LEVELS = (50, 80, 100)


@dataclass(frozen=True)
class Allowance:
    """
    What somebody may spend over a term.

    Attributes:
        usd: `None` for no limit.
        owners: Whose instances and disks count against it; `None` among them for those that name nobody.
    """

    usd: Decimal | None
    owners: frozenset[str | None]


@dataclass(frozen=True)
class TermBudget:
    """
    A budget in dollars for a term.

    Attributes:
        usd: What is allowed; at least 0.
        spent_usd: What the ledger counts so far.
        promised_usd: What the instances that run will cost until their ends, at today's prices.
    """

    usd: Decimal
    spent_usd: Decimal
    promised_usd: Decimal = Decimal(0)

    @property
    def left_usd(self) -> Decimal:
        """What a new instance may still cost; at least 0."""
        return max(Decimal(0), self.usd - self.spent_usd - self.promised_usd)

    def level(self, usd: Decimal) -> int:
        """Return the highest of `LEVELS` that an amount has reached; 0 below all of them."""
        return max((n for n in LEVELS if usd * 100 >= self.usd * n), default=0)
