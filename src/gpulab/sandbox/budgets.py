"""
R17: AWS Budgets, kept by moto, with what was really spent; and their actions, which attach a policy half a day late.

E-mails are not sent. What an action attaches is enforced as an explicit deny (`credentials`).

Source:
    https://docs.aws.amazon.com/cost-management/latest/userguide/budgets-controls.html and budgets-best-practices.html (updates come
    up to three times a day, 8 to 12 hours after the one before); November 2026
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import cost_explorer, moto_services
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.iam_policies import Asked, Decision, decide
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.world import World


def describe_budgets(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DescribeBudget and DescribeBudgets: moto's budgets with the actual spend of the running month."""
    answer = forward(call)
    if not answer.ok:
        return answer
    found = json.loads(answer.body)
    for budget in [*found.get("Budgets", []), *([found["Budget"]] if "Budget" in found else [])]:
        spent = actual_spend(world, call.account, budget)
        budget["CalculatedSpend"] = {"ActualSpend": {"Amount": f"{spent:.10f}", "Unit": "USD"}}
    body = json.dumps(found).encode()
    return replace(answer, body=body, headers={**answer.headers, "Content-Length": str(len(body))})


def actual_spend(world: World, account: str, budget: Mapping[str, Any]) -> Decimal:
    """What the budget's month or year has cost as far as AWS knows; credit is taken off unless `IncludeCredit` is false."""
    now = world.now()
    is_yearly = budget.get("TimeUnit") == "ANNUALLY"
    begin = datetime(now.year, 1 if is_yearly else now.month, 1, tzinfo=now.tzinfo)
    cost_types = budget.get("CostTypes") or {}
    wanted = {"Usage", "Credit"} if cost_types.get("IncludeCredit", True) else {"Usage"}
    amounts = cost_explorer.amounts(world, account, begin, now)
    return sum((a.usd for a in amounts if a.record_type in wanted), Decimal(0))


def update_budget(world: World, call: Call, forward: Forward) -> Answer:
    """Answer UpdateBudget; what the new budget does not name falls back to its default."""
    wanted = dict(call.params["NewBudget"])
    kept = _kept(call, str(wanted["BudgetName"]))
    period = wanted.get("TimePeriod", kept.get("TimePeriod"))
    kept.clear()
    kept.update(wanted, TimePeriod=period, LastUpdatedTime=world.now().timestamp())
    return write_result(call, {})


def delete_budget(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DeleteBudget; its actions go with it, what they attached stays."""
    answer = forward(call)
    if answer.ok:
        world.money.budget_actions.pop(_key(call), None)
    return answer


def describe_subscribers(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DescribeSubscribersForNotification."""
    found = moto_services.subscribers(
        call.account, str(call.params["BudgetName"]), call.params["Notification"]
    )
    if found is None:
        raise Refusal(
            "NotFoundException", "Unable to get subscribers - the notification doesn't exist."
        )
    return write_result(call, {"Subscribers": found})


def delete_notification(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DeleteNotification; one that does not exist is refused, which moto passes over."""
    name, notification = str(call.params["BudgetName"]), call.params["Notification"]
    if moto_services.subscribers(call.account, name, notification) is None:
        raise Refusal(
            "NotFoundException", "Unable to delete notification - the notification doesn't exist."
        )
    return forward(call)


def create_action(world: World, call: Call, forward: Forward) -> Answer:
    """Answer CreateBudgetAction, and look at the budget with each of its updates."""
    params = call.params
    _kept(call, str(params["BudgetName"]))
    trust = moto_services.trust_policy(call.account, str(params["ExecutionRoleArn"]))
    if trust is None or "budgets.amazonaws.com" not in trust:
        raise Refusal(
            "AccessDeniedException",
            f"Budgets permission required to assume [ExecutionRole: {params['ExecutionRoleArn']}] likely missing.",
        )
    for user in params["Definition"].get("IamActionDefinition", {}).get("Users", []):
        if world.credentials.has_user(call.account, user):
            moto_services.ensure_user(call.account, user)
    described = {name: params[name] for name in _DESCRIBED if name in params}
    action = {**described, "ActionId": str(uuid.uuid4()), "Status": "STANDBY"}
    actions = world.money.budget_actions.setdefault(_key(call), [])
    actions.append(action)
    if len(actions) == 1:
        _watch(world, _key(call))
    ids = {name: params[name] for name in ("AccountId", "BudgetName")}
    return write_result(call, {**ids, "ActionId": action["ActionId"]})


def describe_actions(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DescribeBudgetActionsForBudget."""
    _kept(call, str(call.params["BudgetName"]))
    return write_result(call, {"Actions": world.money.budget_actions.get(_key(call), [])})


def delete_action(world: World, call: Call, forward: Forward) -> Answer:
    """Answer DeleteBudgetAction; what it has attached stays attached."""
    actions = world.money.budget_actions.get(_key(call), [])
    gone = [a for a in actions if a["ActionId"] == call.params["ActionId"]]
    if not gone:
        raise Refusal(
            "NotFoundException", f"Unable to find action {call.params['ActionId']}.", status=400
        )
    actions.remove(gone[0])
    ids = {name: call.params[name] for name in ("AccountId", "BudgetName")}
    return write_result(call, {**ids, "Action": gone[0]})


def _watch(world: World, key: tuple[str, str]) -> None:
    def update() -> None:
        if world.money.budget_actions.get(key):
            _act(world, key)
            _watch(world, key)

    world.at(world.now() + _UPDATES_EVERY, update)


def _act(world: World, key: tuple[str, str]) -> None:
    account, name = key
    budget = moto_services.budget(account, name)
    if budget is None:
        return
    spent = actual_spend(world, account, budget)
    limit = Decimal(str(budget["BudgetLimit"]["Amount"]))
    for action in world.money.budget_actions[key]:
        threshold = action["ActionThreshold"]
        value = Decimal(str(threshold["ActionThresholdValue"]))
        is_share = threshold["ActionThresholdType"] == "PERCENTAGE"
        is_over = spent > (limit * value / 100 if is_share else value)
        if is_over and action["Status"] == "STANDBY" and action["ApprovalModel"] == "AUTOMATIC":
            is_done = _attach(account, action)
            action["Status"] = "EXECUTION_SUCCESS" if is_done else "EXECUTION_FAILURE"


def _attach(account: str, action: Mapping[str, Any]) -> bool:
    """Attach the policy with the rights of the action's role; false when any of it does not work."""
    definition = action["Definition"].get("IamActionDefinition", {})
    rights = moto_services.role_policies(account, str(action["ExecutionRoleArn"])) or []
    return all(
        _may_attach(rights, account, definition["PolicyArn"], kind=kind, name=name)
        and moto_services.attach_policy(account, definition["PolicyArn"], kind=kind, name=name)
        for kind in ("User", "Role")
        for name in definition.get(f"{kind}s", [])
    )


def _may_attach(
    rights: Sequence[Mapping[str, Any]], account: str, policy: str, *, kind: str, name: str
) -> bool:
    target = f"arn:aws:iam::{account}:{kind.lower()}/{name}"
    asked = Asked(f"iam:Attach{kind}Policy", target, {"iam:policyarn": (policy,)})
    return decide(rights, asked) is Decision.ALLOWED


def _kept(call: Call, name: str) -> dict[str, Any]:
    found = moto_services.budget(call.account, name)
    if found is None:
        raise Refusal(
            "NotFoundException", f"Unable to get budget: {name} - the budget doesn't exist."
        )
    return found


def _key(call: Call) -> tuple[str, str]:
    return call.account, str(call.params["BudgetName"])


#: Between 8 and 12 hours on AWS.
_UPDATES_EVERY = timedelta(hours=10)
_DESCRIBED = (
    "BudgetName",
    "NotificationType",
    "ActionType",
    "ActionThreshold",
    "Definition",
    "ExecutionRoleArn",
    "ApprovalModel",
    "Subscribers",
)

OPERATIONS: Mapping[str, Any] = {
    "CreateBudgetAction": create_action,
    "DeleteBudget": delete_budget,
    "DeleteBudgetAction": delete_action,
    "DeleteNotification": delete_notification,
    "DescribeBudgetActionsForBudget": describe_actions,
    "DescribeSubscribersForNotification": describe_subscribers,
    "UpdateBudget": update_budget,
    "DescribeBudget": describe_budgets,
    "DescribeBudgets": describe_budgets,
}
