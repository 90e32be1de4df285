"""How the balance is written: what is left, who said so and how old that is, how long it lasts. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from gpulab.model.balance import Balance, Spent
from gpulab.model.budget import TermBudget
from gpulab.spending.forecast import Burn, PlannedLab
from gpulab.view.budget import budget_json, budget_text
from gpulab.view.words import local_time, money, per_hour, span

_SOURCES = {"typed": "your own figure minus the ledger"}


@dataclass(frozen=True)
class CreditView:
    """
    Everything `gpulab credit` says.

    Attributes:
        ends_at: When the balance ends at the pace of `burn`; `None` when nothing runs or nobody knows.
        week_usd: What the ledger counts over the last seven days.
        week_ends_at: When the balance ends at the last week's pace.
        spent_usd: What the ledger counts in all.
        budget: The term's; `None` when the profile has none.
    """

    balance: Balance
    burn: Burn
    ends_at: datetime | None
    week_usd: Decimal
    week_ends_at: datetime | None
    spent_usd: Decimal
    budget: TermBudget | None = None
    plan: PlannedLab | None = None
    cost_explorer: Spent | None = None


def credit_json(view: CreditView) -> dict[str, Any]:
    """Make the document of `--json`."""
    balance = view.balance
    return {
        "left_usd": balance.left_usd,
        "source": balance.source or None,
        "read_at": balance.read_at,
        "spent_since_reading_usd": balance.spent_since_usd,
        "credits": [_credit(c) for c in balance.credits],
        "unusable": [{**_credit(u.credit), "why": u.why} for u in balance.unusable],
        "sources": [
            {"source": a.source, "read_at": a.read_at, "unavailable": a.unavailable or None}
            for a in balance.answers
        ],
        "notes": [note for answer in balance.answers for note in answer.notes],
        "burn_usd_per_hour": view.burn.usd_per_hour,
        "running_instances": view.burn.instances,
        "volumes": view.burn.volumes,
        "ends_at": view.ends_at,
        "last_week_usd": view.week_usd,
        "last_week_ends_at": view.week_ends_at,
        "ledger_total_usd": view.spent_usd,
        "budget": budget_json(view.budget),
        "plan": view.plan,
        "cost_explorer": view.cost_explorer,
    }


def _credit(credit: Any) -> dict[str, Any]:
    return {
        "id": credit.id,
        "left_usd": credit.left_usd,
        "initial_usd": credit.initial_usd,
        "expires_at": credit.expires_at,
        "products": list(credit.products),
    }


def credit_lines(view: CreditView, *, now: datetime) -> list[str]:
    """Write the balance for people."""
    lines = [*_left(view.balance, now=now), *_credits(view.balance), ""]
    lines += [*_pace(view, now=now), f"spent so far by the ledger: {money(view.spent_usd)}"]
    if view.budget:
        lines.append(budget_text(view.budget))
    if view.plan:
        lines += ["", *_plan(view.plan, view.balance.left_usd)]
    if view.cost_explorer:
        lines += ["", *_explorer(view.cost_explorer, now=now)]
    notes = [note for answer in view.balance.answers for note in answer.notes]
    return [*lines, *_sources(view.balance), *(["", *notes] if notes else [])]


def _left(balance: Balance, *, now: datetime) -> Sequence[str]:
    if balance.left_usd is None or balance.read_at is None:
        return ["left: not known; type what you were given with `gpulab init --credit 50`"]
    age = span(now - balance.read_at)
    name = _SOURCES.get(balance.source, f"{balance.source}, read {age} ago")
    lines = [f"left: {money(balance.left_usd)} ({name})"]
    if balance.spent_since_usd and balance.source != "typed":
        lines.append(f"  {money(balance.spent_since_usd)} spent since then is taken off")
    return lines


def _credits(balance: Balance) -> Sequence[str]:
    lines = [f"  {c.id}: {money(c.left_usd)}{_until(c.expires_at)}" for c in balance.credits]
    return lines + [
        f"  {u.credit.id}: {money(u.credit.left_usd)} not counted: it {u.why}"
        if not u.why.startswith("expired")
        else f"  {u.credit.id}: {money(u.credit.left_usd)} not counted: {u.why}"
        for u in balance.unusable
    ]


def _until(expires_at: datetime | None) -> str:
    return f", expires {expires_at:%Y-%m-%d}" if expires_at else ""


def _pace(view: CreditView, *, now: datetime) -> Sequence[str]:
    burn = view.burn
    parts = f"{_count(burn.instances, 'instance')}, {_count(burn.volumes, 'disk')}"
    more = "" if burn.is_complete else ", and more whose price is not known"
    lines = [f"now: {per_hour(burn.usd_per_hour)} ({parts}{more})"]
    if view.ends_at:
        lines.append(f"at this pace it ends {local_time(view.ends_at, now=now)}")
    week = f"last 7 days: {money(view.week_usd)}"
    if view.week_ends_at:
        week += f"; at that pace it ends {local_time(view.week_ends_at, now=now)}"
    return [*lines, week]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _plan(plan: PlannedLab, left_usd: Decimal | None) -> Sequence[str]:
    line = f"{plan.hours} h at {per_hour(plan.usd_per_hour)} with disk and address: at most {money(plan.at_most_usd)}"
    if left_usd is None:
        return [line]
    rest = left_usd - plan.at_most_usd
    return [
        line,
        f"that leaves {money(rest)}" if rest >= 0 else f"that is {money(-rest)} more than is left",
    ]


def _explorer(spent: Spent, *, now: datetime) -> Sequence[str]:
    lines = [f"Cost Explorer since {spent.begin:%Y-%m-%d}, read {span(now - spent.read_at)} ago:"]
    return lines + [f"  {name}: {money(usd)}" for name, usd in sorted(spent.by_record_type.items())]


def _sources(balance: Balance) -> Sequence[str]:
    missing = [a for a in balance.answers if a.unavailable]
    if not missing:
        return []
    return ["", *(f"not available: {a.source}: {a.unavailable}" for a in missing)]
