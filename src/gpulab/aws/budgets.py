"""
AWS Budgets: one budget of ours in an account, its e-mails, and the action that forbids launches when it is spent.

Hides that a budget counts credits unless told otherwise, and then never moves while credit pays. Repeatable; changes nothing of others.

Source:
    https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_Operations_AWS_Budgets.html (November 2026)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.errors import NotFound
from gpulab.model.guard import AccountBudget, BudgetAction, Principals

if TYPE_CHECKING:
    from mypy_boto3_budgets import BudgetsClient

# It has one endpoint for the world.
_REGION = "us-east-1"
_FULL = 100


@explained("read the budget")
def read_budget(cloud: Cloud, account_id: str, name: str) -> AccountBudget | None:
    """
    Read a budget and whom it tells; `None` when there is none of that name.

    Raises:
        AwsError: AWS does not say.
    """
    client = _client(cloud)
    try:
        with cloud.explained(f"read the budget {name}"):
            found = client.describe_budget(AccountId=account_id, BudgetName=name)["Budget"]
            told = client.describe_notifications_for_budget(AccountId=account_id, BudgetName=name)
    except NotFound:
        return None
    kinds = found.get("CostTypes", {})
    spent = found.get("CalculatedSpend", {}).get("ActualSpend", {}).get("Amount", "0")
    alerts = {
        int(n["Threshold"]): _addresses(cloud, account_id, name, n)
        for n in told.get("Notifications", [])
        if _is_ours(n)
    }
    return AccountBudget(
        limit_usd=Decimal(found["BudgetLimit"]["Amount"]),
        spent_usd=Decimal(spent),
        counts_gross=not kinds.get("IncludeCredit", True) and not kinds.get("IncludeRefund", True),
        alerts=alerts,
    )


def put_budget(cloud: Cloud, account_id: str, name: str, limit_usd: Decimal) -> None:
    """
    Make the budget for a calendar year's cost before credits and refunds, or set its limit.

    Raises:
        NotAllowed: The credentials may not make budgets.
        AwsError: AWS refuses otherwise.
    """
    wanted = _budget(name, limit_usd)
    client = _client(cloud)
    with cloud.explained(f"make the budget {name}"):
        try:
            client.create_budget(AccountId=account_id, Budget=wanted)
        except client.exceptions.DuplicateRecordException:
            client.update_budget(AccountId=account_id, NewBudget=wanted)


def put_alerts(
    cloud: Cloud, account_id: str, name: str, *, levels: Iterable[int], email: str
) -> None:
    """
    Have one address told at each level, in percent of the limit; whoever was told before is told no more.

    Raises:
        AwsError: AWS refuses.
    """
    client = _client(cloud)
    subscriber = {"SubscriptionType": "EMAIL", "Address": email}
    with cloud.explained(f"have {email} told by the budget {name}"):
        for level in levels:
            notice = _notice(level)
            with suppress(client.exceptions.NotFoundException):
                client.delete_notification(
                    AccountId=account_id, BudgetName=name, Notification=notice
                )
            client.create_notification(
                AccountId=account_id,
                BudgetName=name,
                Notification=notice,
                Subscribers=[subscriber],  # type: ignore[list-item] # the literal EMAIL
            )


def delete_budget(cloud: Cloud, account_id: str, name: str) -> bool:
    """
    Delete a budget with its alerts.

    Returns:
        Whether there was one.

    Raises:
        AwsError: AWS refuses.
    """
    try:
        with cloud.explained(f"delete the budget {name}"):
            _client(cloud).delete_budget(AccountId=account_id, BudgetName=name)
    except NotFound:
        return False
    return True


@explained("read the budget's actions")
def read_actions(cloud: Cloud, account_id: str, name: str) -> tuple[BudgetAction, ...]:
    """
    Read the actions of a budget that attach a policy; empty when there is no such budget.

    Raises:
        AwsError: AWS does not say.
    """
    try:
        pages = list(
            cloud.pages(
                "budgets",
                _REGION,
                "describe_budget_actions_for_budget",
                doing=f"read what the budget {name} does",
                AccountId=account_id,
                BudgetName=name,
            )
        )
    except NotFound:
        return ()
    found = [action for page in pages for action in page["Actions"]]
    return tuple(_action(a) for a in found if "IamActionDefinition" in a["Definition"])


@explained("make the budget's action")
def create_action(
    cloud: Cloud,
    account_id: str,
    name: str,
    *,
    policy_arn: str,
    role_arn: str,
    targets: Principals,
    email: str,
) -> None:
    """
    Have AWS attach a policy to users and roles, unasked, when the whole limit is spent.

    Raises:
        NotAllowed: The credentials may not, or AWS cannot assume the role: one made moments ago needs some seconds.
        AwsError: AWS refuses otherwise.
    """
    definition = {"PolicyArn": policy_arn, "Users": targets.users, "Roles": targets.roles}
    asked: dict[str, Any] = {
        "AccountId": account_id,
        "BudgetName": name,
        "NotificationType": "ACTUAL",
        "ActionType": "APPLY_IAM_POLICY",
        "ActionThreshold": {
            "ActionThresholdValue": float(_FULL),
            "ActionThresholdType": "PERCENTAGE",
        },
        "Definition": {
            "IamActionDefinition": {
                key: value if isinstance(value, str) else list(value)
                for key, value in definition.items()
                if value
            }
        },
        "ExecutionRoleArn": role_arn,
        "ApprovalModel": "AUTOMATIC",
        "Subscribers": [{"SubscriptionType": "EMAIL", "Address": email}],
    }
    with cloud.explained(f"have the budget {name} forbid launches"):
        _client(cloud).create_budget_action(**asked)


def delete_action(cloud: Cloud, account_id: str, name: str, action_id: str) -> None:
    """
    Delete an action; what it has attached stays attached.

    Raises:
        AwsError: AWS refuses.
    """
    with cloud.explained(f"delete what the budget {name} does"):
        _client(cloud).delete_budget_action(
            AccountId=account_id, BudgetName=name, ActionId=action_id
        )


def _client(cloud: Cloud) -> BudgetsClient:
    client: BudgetsClient = cloud.client("budgets", _REGION)
    return client


def _budget(name: str, limit_usd: Decimal) -> Any:
    return {
        "BudgetName": name,
        "BudgetType": "COST",
        # A monthly one would begin anew four times in a term.
        "TimeUnit": "ANNUALLY",
        "BudgetLimit": {"Amount": f"{limit_usd:f}", "Unit": "USD"},
        "CostTypes": {"IncludeCredit": False, "IncludeRefund": False},
    }


def _notice(level: int) -> Any:
    return {
        "NotificationType": "ACTUAL",
        "ComparisonOperator": "GREATER_THAN",
        "Threshold": float(level),
        "ThresholdType": "PERCENTAGE",
    }


def _is_ours(notice: Mapping[str, Any]) -> bool:
    kind = notice.get("NotificationType"), notice.get("ThresholdType", "PERCENTAGE")
    return kind == ("ACTUAL", "PERCENTAGE")


def _addresses(cloud: Cloud, account_id: str, name: str, notice: Any) -> tuple[str, ...]:
    asked = {key: value for key, value in notice.items() if key != "NotificationState"}
    with cloud.explained(f"read whom the budget {name} tells"):
        said = _client(cloud).describe_subscribers_for_notification(
            AccountId=account_id,
            BudgetName=name,
            Notification=asked,  # type: ignore[arg-type] # AWS's own answer, less what it adds
        )
    return tuple(s["Address"] for s in said["Subscribers"] if s["SubscriptionType"] == "EMAIL")


def _action(said: Mapping[str, Any]) -> BudgetAction:
    applied, threshold = said["Definition"]["IamActionDefinition"], said["ActionThreshold"]
    is_share = threshold["ActionThresholdType"] == "PERCENTAGE"
    is_actual = said["NotificationType"] == "ACTUAL"
    return BudgetAction(
        id=said["ActionId"],
        status=said["Status"],
        policy_arn=applied["PolicyArn"],
        role_arn=said["ExecutionRoleArn"],
        targets=Principals(
            tuple(sorted(applied.get("Users", ()))), tuple(sorted(applied.get("Roles", ())))
        ),
        percent=int(threshold["ActionThresholdValue"]) if is_share and is_actual else None,
        is_automatic=said["ApprovalModel"] == "AUTOMATIC",
    )
