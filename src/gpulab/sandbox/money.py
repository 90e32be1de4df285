"""R17: credits, the account plan, Cost Explorer and the price list, computed from the world's own books."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal


@dataclass
class Credit:
    """One promotional credit of an account; `left` is worked out from the bill."""

    id: str
    account: str
    initial_usd: Decimal
    begins_at: datetime
    ends_at: datetime
    products: tuple[str, ...] = ()
    is_enabled: bool = True
    description: str = "AWS promotional credit (simulated)"


@dataclass
class Money:
    """What accounts have: credits and plans."""

    credits: dict[str, list[Credit]] = field(default_factory=dict)
    plans: dict[str, str] = field(default_factory=dict)

    def set_credit(
        self,
        account: str,
        usd: Decimal,
        now: datetime,
        *,
        ends_at: datetime | None = None,
        products: tuple[str, ...] = (),
    ) -> Credit:
        """Give an account one credit, instead of any it had."""
        end = ends_at or now + timedelta(days=365)
        credit = Credit("1000000001", account, usd, now, end, products)
        self.credits[account] = [credit]
        return credit
