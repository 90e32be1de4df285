"""
Reading the balance: sources in order, remembered for an hour, minus what the ledger has counted since.

Hides caching and the ledger; asks Cost Explorer only when told to, as it costs $0.01 a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from gpulab.errors import GpulabError
from gpulab.launch.context import Context
from gpulab.launch.money.rebuilding import refresh
from gpulab.model.balance import Balance, SourceAnswer, Spent
from gpulab.model.credit import Credit
from gpulab.model.fact import credit_reading
from gpulab.spending.balance import balance_of
from gpulab.spending.facts import LedgerReading, timeline_of
from gpulab.spending.forecast import spent_between

# A reading is believed for so long; what is spent meanwhile comes from the ledger.
_FRESH = timedelta(hours=1)
_COST_EXPLORER_FRESH = timedelta(days=1)
_COST_EXPLORER_BACK = timedelta(days=365)


@dataclass(frozen=True)
class Reading:
    """A balance and the ledger it was read with."""

    balance: Balance
    ledger: LedgerReading


def read_balance(
    context: Context, *, is_fresh: bool = False, is_ledger_enough: bool = False
) -> Reading:
    """
    Find out what is left.

    Args:
        is_fresh: Whether to ask the sources even when they were asked within the hour.
        is_ledger_enough: Whether to believe the ledger about what runs, without asking EC2; the figure is then at most too low.

    Returns:
        A balance whose `left_usd` is `None` when no source knows; unavailable sources are listed with their reason.
    """
    now = context.now()
    # A figure with an ended instance still counted is worth more than none.
    if not is_ledger_enough:
        with suppress(GpulabError):
            refresh(context)
    ledger = timeline_of(context.ledger.facts())
    balance = balance_of(
        _answers(context, is_fresh=is_fresh),
        typed_usd=context.profile.credit_usd,
        spent_since=lambda begin: spent_between(ledger.timeline, begin, now),
        now=now,
    )
    return Reading(balance, ledger)


def cost_explorer(context: Context) -> tuple[Spent, bool]:
    """
    Read the last year's usage and credits from Cost Explorer; at most one paid request a day.

    Returns:
        What was said, and whether this call was paid for.

    Raises:
        GpulabError: AWS refused.
    """
    from gpulab.aws.billing import spent_by_cost_explorer

    known = remembered_cost_explorer(context)
    if known is not None:
        return known, False
    now = context.now()
    first = (now - _COST_EXPLORER_BACK).replace(day=1)
    tomorrow = now + timedelta(days=1)
    spent = spent_by_cost_explorer(context.cloud, begin=first, end=tomorrow, now=now)
    sums = {key: str(usd) for key, usd in spent.by_record_type.items()}
    said = [spent.begin.isoformat(), spent.end.isoformat(), sums, now.isoformat()]
    context.cache.put(_key(context, "cost-explorer"), said, lasting=_COST_EXPLORER_FRESH)
    return spent, True


def remembered_cost_explorer(context: Context) -> Spent | None:
    """Return today's answer of Cost Explorer, if it was asked."""
    said = context.cache.get(_key(context, "cost-explorer"))
    if said is None:
        return None
    begin, end, sums, read_at = said
    return Spent(
        datetime.fromisoformat(begin),
        datetime.fromisoformat(end),
        {key: Decimal(usd) for key, usd in sums.items()},
        datetime.fromisoformat(read_at),
    )


def _answers(context: Context, *, is_fresh: bool) -> tuple[SourceAnswer, ...]:
    key = _key(context, "credits")
    known = None if is_fresh else context.cache.get(key)
    if known is not None:
        return tuple(_answer(said) for said in known)
    answers = _ask(context)
    context.ledger.append(credit_reading(c) for answer in answers for c in answer.credits)
    context.cache.put(key, [_said(answer) for answer in answers], lasting=_FRESH)
    return answers


def _ask(context: Context) -> tuple[SourceAnswer, ...]:
    from gpulab.aws.billing import account_plan, credits_of

    now = context.now()
    first = credits_of(context.cloud, now=now)
    return (first,) if first.credits else (first, account_plan(context.cloud, now=now))


def _key(context: Context, what: str) -> str:
    """Name a cache entry; without credentials there is no account, and nothing to mix up."""
    try:
        return f"{context.account}/{what}"
    except GpulabError:
        return f"none/{what}"


def _said(answer: SourceAnswer) -> dict[str, Any]:
    return {
        "source": answer.source,
        "read_at": answer.read_at.isoformat(),
        "unavailable": answer.unavailable,
        "notes": list(answer.notes),
        "credits": [
            {
                "id": c.id,
                "left_usd": str(c.left_usd),
                "initial_usd": None if c.initial_usd is None else str(c.initial_usd),
                "expires_at": c.expires_at.isoformat() if c.expires_at else None,
                "products": list(c.products),
            }
            for c in answer.credits
        ],
    }


def _answer(said: Mapping[str, Any]) -> SourceAnswer:
    read_at = datetime.fromisoformat(said["read_at"])
    return SourceAnswer(
        source=said["source"],
        read_at=read_at,
        credits=tuple(_credit(c, said["source"], read_at) for c in said["credits"]),
        unavailable=said["unavailable"],
        notes=tuple(said["notes"]),
    )


def _credit(said: Mapping[str, Any], source: str, read_at: datetime) -> Credit:
    initial, expires = said["initial_usd"], said["expires_at"]
    return Credit(
        id=said["id"],
        left_usd=Decimal(said["left_usd"]),
        initial_usd=None if initial is None else Decimal(initial),
        expires_at=datetime.fromisoformat(expires) if expires else None,
        products=tuple(said["products"]),
        source=source,
        read_at=read_at,
    )
