"""What a sweep found, and what came of deleting it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from gpulab.launch.upkeep.sweep import Leftovers, Outcome
from gpulab.model.leftover import Leftover
from gpulab.view.console import table
from gpulab.view.words import money

COLUMNS = ("kind", "id", "name", "region", "usd_per_month", "priced_as", "why")


def leftover_row(item: Leftover) -> dict[str, Any]:
    """Return one thing for programs; USD per month as it is, `None` when no price is known."""
    found = item.resource
    return {
        "kind": found.kind,
        "id": found.id,
        "name": found.name,
        "region": found.region,
        "usd_per_month": found.usd_per_month,
        "priced_as": found.priced_as or "",
        "why": item.why,
    }


def leftovers_text(left: Leftovers) -> str:
    """Say what would be deleted with what it costs, what stays and why, and what could not be read."""
    parts = []
    if left.found:
        parts.append(_table(left.found))
        parts.append(
            f"{len(left.found)} left over, {money(left.usd_per_month)} a month; `gpulab sweep --apply` deletes them"
        )
    else:
        parts.append("Nothing is left over")
    if left.untouchable:
        parts.append("Not touched:\n" + _table(left.untouchable))
    parts += [f"{region} was not read: {why}" for region, why in sorted(left.unread.items())]
    return "\n\n".join(parts)


def outcome_text(outcome: Outcome) -> str:
    """Say in one line what came of deleting one thing."""
    found = outcome.leftover.resource
    if outcome.is_done:
        return f"deleted  {found.kind} {found.id} ({found.region})"
    return f"failed   {found.kind} {found.id} ({found.region}): {outcome.error}"


def _table(items: tuple[Leftover, ...]) -> str:
    rows = [
        [
            str(i.resource.kind),
            i.resource.id,
            i.resource.name,
            i.resource.region,
            _monthly(i.resource.usd_per_month),
            str(i.resource.priced_as or "-"),
            i.why,
        ]
        for i in items
    ]
    return table(rows, ["KIND", "ID", "NAME", "REGION", "USD/MONTH", "PRICE", "WHY"], right=[4])


def _monthly(usd: Decimal | None) -> str:
    return money(usd) if usd is not None else "?"
