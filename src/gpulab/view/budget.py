"""How much of the term's budget is used, in a line and for programs."""

from __future__ import annotations

from typing import Any

from gpulab.model.budget import TermBudget
from gpulab.view.words import money, percent


def budget_text(budget: TermBudget) -> str:
    """Say how much of the budget is used, and louder at 50, 80 and 100 %."""
    kept = f", {money(budget.promised_usd)} kept for what runs" if budget.promised_usd else ""
    share = percent(budget.spent_usd, budget.usd)
    words = f"budget: {money(budget.spent_usd)} of {money(budget.usd)} spent ({share}){kept}, {money(budget.left_usd)} left"
    level = budget.level(budget.spent_usd)
    if level == 100:
        return f"{words}; it is used up, `gpulab up` starts nothing"
    return f"{words}; over {level} %" if level else words


def budget_json(budget: TermBudget | None) -> dict[str, Any] | None:
    """Return it for programs; `None` when there is none. `level` is 0, 50, 80 or 100, by what is spent."""
    if budget is None:
        return None
    return {
        "usd": budget.usd,
        "spent_usd": budget.spent_usd,
        "promised_usd": budget.promised_usd,
        "left_usd": budget.left_usd,
        "level": budget.level(budget.spent_usd),
    }
