"""Which credits count and what is left of them. Hides product lists and expiry; refuses to add what cannot pay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal

from gpulab.model.balance import Balance, SourceAnswer, UnusableCredit
from gpulab.model.credit import Credit


def balance_of(
    answers: Iterable[SourceAnswer],
    *,
    typed_usd: Decimal | None,
    spent_since: Callable[[datetime | None], Decimal],
    now: datetime,
) -> Balance:
    """
    Take the first source that knows a credit; the student's own figure minus the ledger comes last.

    Args:
        answers: In order of trust.
        typed_usd: What the student says the credit was at first; `None` if never typed.
        spent_since: What the ledger counts from a moment (`None`: from the beginning) up to now, USD.
    """
    asked = tuple(answers)
    best = next((a for a in asked if a.credits), None)
    if best is None and typed_usd is not None:
        return _typed(asked, typed_usd, spent_since(None), now)
    if best is None:
        best = next((a for a in asked if not a.unavailable), None)
    if best is None or (not best.credits and best.source != "billing:GetCredits"):
        return Balance(None, "", None, answers=asked)
    return _of_source(asked, best, spent_since(best.read_at), now)


def _typed(
    asked: tuple[SourceAnswer, ...], typed_usd: Decimal, spent: Decimal, now: datetime
) -> Balance:
    left = max(Decimal(0), typed_usd - spent)
    return Balance(left, "typed", now, spent_since_usd=spent, answers=asked)


def _of_source(
    asked: tuple[SourceAnswer, ...], best: SourceAnswer, spent: Decimal, now: datetime
) -> Balance:
    sorted_out = [(credit, why_unusable(credit, now=now)) for credit in best.credits]
    usable = sorted((c for c, why in sorted_out if not why), key=_expiry)
    left = sum((credit.left_usd for credit in usable), Decimal(0))
    return Balance(
        left_usd=max(Decimal(0), left - spent),
        source=best.source,
        read_at=best.read_at,
        spent_since_usd=spent,
        credits=tuple(usable),
        unusable=tuple(UnusableCredit(credit, why) for credit, why in sorted_out if why),
        answers=asked,
    )


def why_unusable(credit: Credit, *, now: datetime) -> str:
    """Say why a credit will not pay for an instance; empty when it will."""
    if credit.expires_at is not None and credit.expires_at <= now:
        return f"expired on {credit.expires_at:%Y-%m-%d}"
    if credit.products and not any(_is_ec2(product) for product in credit.products):
        return "does not pay for EC2"
    if credit.left_usd <= 0:
        return "is used up"
    return ""


def _is_ec2(product: str) -> bool:
    plain = product.casefold().replace(" ", "")
    return "elasticcomputecloud" in plain or "ec2" in plain


def _expiry(credit: Credit) -> tuple[bool, datetime, str]:
    return credit.expires_at is None, credit.expires_at or credit.read_at, credit.id
