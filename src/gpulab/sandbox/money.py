"""R17: credits and the account's plan (`billing`, `freetier`), worked out from the world's own books."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gpulab.sandbox import paging
from gpulab.sandbox.calls import Answer, Call, Forward, Refusal
from gpulab.sandbox.wire import write_result

if TYPE_CHECKING:
    from gpulab.sandbox.world import World

#: AWS's own figures are a day late.
REPORTING_DELAY = timedelta(days=1)
#: What a ready account has when nobody set a credit.
READY_CREDIT_USD = Decimal(100)
_YEAR = timedelta(days=366)


@dataclass
class Credit:
    """One promotional credit of an account; how much of it is left is worked out from the bill."""

    id: str
    initial_usd: Decimal
    begins_at: datetime
    ends_at: datetime
    products: tuple[str, ...] = ()
    is_enabled: bool = True
    type: str = "Promotion"
    description: str = "AWS promotional credit (simulated)"


@dataclass
class Money:
    """
    What accounts have: credits and plans.

    Attributes:
        ready: The credit of an account that nobody gave another; `None` for none.
        budget_actions: What budgets do by themselves, by account and budget; as AWS describes each.
    """

    ready: Credit | None = None
    credits: dict[str, list[Credit]] = field(default_factory=dict)
    plans: dict[str, str] = field(default_factory=dict)
    budget_actions: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)

    def set_credits(self, account: str, given: list[Credit]) -> None:
        """Give an account these credits, instead of any it had."""
        self.credits[account] = given

    def of(self, account: str) -> list[Credit]:
        """The credits of an account, the one that ends first in front."""
        standard = [self.ready] if self.ready else []
        return sorted(self.credits.get(account, standard), key=lambda c: (c.ends_at, c.id))


def usable(credit: Credit, at: datetime) -> bool:
    """Whether a credit pays for EC2 at a moment."""
    pays_ec2 = not credit.products or any(
        "Elastic Compute" in product for product in credit.products
    )
    return credit.is_enabled and pays_ec2 and credit.begins_at <= at < credit.ends_at


def left_of(world: World, account: str, as_of: datetime) -> dict[str, Decimal]:
    """What is left of each credit when everything up to a moment is paid; the credit that ends first pays first."""
    owed = sum(
        (line.usd for line in world.bill(as_of).lines if line.account == account), Decimal(0)
    )
    left = {}
    for credit in world.money.of(account):
        pays = min(owed, credit.initial_usd) if usable(credit, as_of) else Decimal(0)
        left[credit.id] = credit.initial_usd - pays
        owed -= pays
    return left


def get_credits(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetCredits: `remainingAmount` after the closed months, `estimatedAmount` a day behind."""
    now = world.now()
    account = _own_account(call)
    start = _moment(call.params.get("startDate"), now)
    if now - start > _YEAR:
        raise Refusal(
            "ValidationException",
            "startDate must not be more than one year before the current date.",
        )
    closed = left_of(world, account, _month_start(now))
    estimated = left_of(world, account, now - REPORTING_DELAY)
    described = [
        {
            "creditId": credit.id,
            "accountId": account,
            "creditType": credit.type,
            "initialAmount": _usd(credit.initial_usd),
            "remainingAmount": _usd(closed[credit.id]),
            "estimatedAmount": _usd(estimated[credit.id]),
            "applicableProductNames": list(credit.products),
            "description": credit.description,
            "startDate": credit.begins_at,
            "endDate": credit.ends_at,
            "applicationType": "AFTER_DISCOUNTS",
            "accountHasCreditSharingEnabled": False,
            "creditSharingType": "DEFAULT",
            "creditStatus": "ENABLED" if credit.is_enabled else "DISABLED",
        }
        for credit in world.money.of(account)
        if credit.ends_at > start
    ]
    return write_result(call, {"credits": described})


def get_credit_allocation_history(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetCreditAllocationHistory: what credit paid, per credit, service and month."""
    account = _own_account(call)
    now = world.now()
    start = _moment(call.params.get("startDate"), now)
    end = min(_moment(call.params.get("endDate"), now), now)
    rows = []
    month = _month_start(start)
    while month < end:
        following = _next_month(month)
        before = left_of(world, account, month)
        after = left_of(world, account, min(following, end))
        for credit in world.money.of(account):
            paid = before[credit.id] - after[credit.id]
            if paid > 0 and call.params.get("creditId") in (None, int(credit.id)):
                rows.append(
                    {
                        "creditId": credit.id,
                        "creditAmount": _usd(paid),
                        "description": credit.description,
                        "accountId": account,
                        "appliedServiceName": "Amazon Elastic Compute Cloud",
                        "billingMonth": month.strftime("%Y-%m"),
                        "isEstimatedBill": following > now,
                    }
                )
        month = following
    page, token = paging.page(
        rows,
        call.params,
        largest=1000,
        default=1000,
        names=("maxResults", "nextToken"),
        error="ValidationException",
    )
    result = {
        "creditAllocationHistoryList": page,
        "partialResults": False,
        "failedMonths": [],
        "nextToken": token,
    }
    return write_result(call, result)


def get_account_plan_state(world: World, call: Call, forward: Forward) -> Answer:
    """Answer GetAccountPlanState; a first-day account is too old for the plans that began in July 2025."""
    plan = world.plan_of(call.account)
    if plan == "PAID" and not world.money.of(call.account):
        raise Refusal(
            "ResourceNotFoundException", "The account does not have an account plan.", status=404
        )
    left = sum(left_of(world, call.account, world.now() - REPORTING_DELAY).values(), Decimal(0))
    result: dict[str, Any] = {
        "accountId": call.account,
        "accountPlanType": plan,
        "accountPlanStatus": "ACTIVE",
        "accountPlanRemainingCredits": {"amount": float(left), "unit": "USD"},
    }
    if plan == "FREE":
        result["accountPlanExpirationDate"] = world.began_at + timedelta(days=182)
    return write_result(call, result)


def _own_account(call: Call) -> str:
    account = str(call.params.get("accountId", call.account))
    if account != call.account:
        raise Refusal(
            "AccessDeniedException",
            f"You don't have permission to read the credits of account {account}.",
        )
    return account


def _usd(amount: Decimal) -> dict[str, str]:
    return {"currencyCode": "USD", "currencyAmount": f"{amount:.10f}"}


def _moment(value: Any, default: datetime) -> datetime:
    return datetime.fromtimestamp(float(value), UTC) if isinstance(value, int | float) else default


def _month_start(moment: datetime) -> datetime:
    return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _next_month(moment: datetime) -> datetime:
    return _month_start(_month_start(moment) + timedelta(days=32))


BILLING: Mapping[str, Any] = {
    "GetCredits": get_credits,
    "GetCreditAllocationHistory": get_credit_allocation_history,
}
FREE_TIER: Mapping[str, Any] = {"GetAccountPlanState": get_account_plan_state}
