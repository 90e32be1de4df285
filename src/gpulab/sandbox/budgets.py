"""R17: AWS Budgets, kept by moto, with what was really spent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import cost_explorer
from gpulab.sandbox.calls import Answer, Call, Forward

if TYPE_CHECKING:
    from gpulab.sandbox.world import World


def describe_budgets(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DescribeBudget and DescribeBudgets: moto's budgets with the actual spend of the running month."""
    answer = forward(call)
    if not answer.ok:
        return answer
    found = json.loads(answer.body)
    for budget in [*found.get("Budgets", []), *([found["Budget"]] if "Budget" in found else [])]:
        spent = actual_spend(world, call.account, budget.get("CostTypes") or {})
        budget["CalculatedSpend"] = {"ActualSpend": {"Amount": f"{spent:.10f}", "Unit": "USD"}}
    body = json.dumps(found).encode()
    return replace(answer, body=body, headers={**answer.headers, "Content-Length": str(len(body))})


def actual_spend(world: World, account: str, cost_types: Mapping[str, Any]) -> Decimal:
    """What the month has cost as far as AWS knows; credit is taken off unless `IncludeCredit` is false."""
    now = world.now()
    month = datetime(now.year, now.month, 1, tzinfo=now.tzinfo)
    wanted = {"Usage", "Credit"} if cost_types.get("IncludeCredit", True) else {"Usage"}
    amounts = cost_explorer.amounts(world, account, month, now)
    return sum((a.usd for a in amounts if a.record_type in wanted), Decimal(0))


OPERATIONS: Mapping[str, Any] = {
    "DescribeBudget": describe_budgets,
    "DescribeBudgets": describe_budgets,
}
