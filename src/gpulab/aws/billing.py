"""
Credits as AWS tells them. Hides three services of different age; a source that will not answer is unavailable, not a failure.

None of them is part of a launch's fate: a missing permission, an old botocore, an unknown endpoint or no credentials at all only
mean that the next source is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from gpulab.aws.session import Cloud
from gpulab.errors import GpulabError
from gpulab.model.balance import SourceAnswer, Spent
from gpulab.model.credit import Credit
from gpulab.model.moment import read_moment

GET_CREDITS = "billing:GetCredits"
ACCOUNT_PLAN = "freetier:GetAccountPlanState"

# These services have one endpoint for the world.
_REGION = "us-east-1"
# GetCredits takes a start "not more than one year before the current date".
_LONGEST = timedelta(days=364)

_FREE_PLAN = "This account is on AWS's free plan, which cannot launch a GPU: upgrade it to the paid plan, the credits stay"
_ACADEMY = "This is an AWS Academy Learner Lab: it has no GPU types and no spot market, so it cannot run these labs"


class _Unavailable(Exception):
    """Why a source does not answer."""


def credits_of(cloud: Cloud, *, now: datetime) -> SourceAnswer:
    """
    Read every credit of the account.

    Source:
        https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_billing_GetCredits.html (July 2026)
    """
    try:
        with _unavailable():
            identity = cloud.client("sts", _REGION)
            with cloud.explained("read the account's number"):
                who = identity.get_caller_identity()
            ask = _operation(cloud, "billing", "get_credits")
            with cloud.explained("read the credits"):
                reply = ask(accountId=who["Account"], startDate=now - _LONGEST)
    except _Unavailable as error:
        return SourceAnswer(GET_CREDITS, now, unavailable=str(error))
    found = [_credit(said, now) for said in reply.get("credits") or ()]
    return SourceAnswer(
        GET_CREDITS,
        now,
        credits=tuple(credit for credit, _ in found if credit is not None),
        notes=(*(note for _, note in found if note), *_account_notes(who)),
    )


def account_plan(cloud: Cloud, *, now: datetime) -> SourceAnswer:
    """
    Read the free-tier plan's remaining credit; a hint, since AWS's text speaks of credits earned.

    Source:
        https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_freetier_GetAccountPlanState.html
    """
    try:
        with _unavailable():
            ask = _operation(cloud, "freetier", "get_account_plan_state")
            with cloud.explained("read the account's plan"):
                plan = ask()
    except _Unavailable as error:
        return SourceAnswer(ACCOUNT_PLAN, now, unavailable=str(error))
    notes = (_FREE_PLAN,) if plan.get("accountPlanType") == "FREE" else ()
    left = plan.get("accountPlanRemainingCredits") or {}
    if left.get("unit", "USD") != "USD" or "amount" not in left:
        return SourceAnswer(ACCOUNT_PLAN, now, notes=notes)
    credit = Credit(
        id="account plan",
        # botocore reads a JSON number as a float; its shortest text is what AWS wrote.
        left_usd=Decimal(str(left["amount"])),
        initial_usd=None,
        expires_at=_utc(plan.get("accountPlanExpirationDate")),
        products=(),
        source=ACCOUNT_PLAN,
        read_at=now,
    )
    return SourceAnswer(ACCOUNT_PLAN, now, credits=(credit,), notes=notes)


def spent_by_cost_explorer(cloud: Cloud, *, begin: datetime, end: datetime, now: datetime) -> Spent:
    """
    Read usage and credits apart, in one paid request ($0.01); the net alone is 0 while credits pay.

    Args:
        begin: First day, UTC; at most 13 months back.
        end: Exclusive.

    Raises:
        GpulabError: AWS refused; the request may have cost all the same.

    Source:
        https://docs.aws.amazon.com/aws-cost-management/latest/APIReference/API_GetCostAndUsage.html
    """
    client = cloud.client("ce", _REGION)
    with cloud.explained("ask Cost Explorer"):
        reply = client.get_cost_and_usage(
            TimePeriod={"Start": f"{begin:%Y-%m-%d}", "End": f"{end:%Y-%m-%d}"},
            Granularity="MONTHLY",
            Metrics=["UnblendedCost"],
            GroupBy=[{"Type": "DIMENSION", "Key": "RECORD_TYPE"}],
        )
    sums: dict[str, Decimal] = {}
    for month in reply.get("ResultsByTime", ()):
        for group in month.get("Groups", ()):
            amount = _decimal(group["Metrics"]["UnblendedCost"]["Amount"]) or Decimal(0)
            sums[group["Keys"][0]] = sums.get(group["Keys"][0], Decimal(0)) + amount
    return Spent(begin, end, sums, now)


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except GpulabError as error:
        raise _Unavailable(error.message) from error


def _operation(cloud: Cloud, service: str, method: str) -> Any:
    """Find an operation that this botocore may be too old for."""
    found = getattr(cloud.client(service, _REGION), method, None)
    if found is None:
        raise _Unavailable(f"the installed botocore does not know {service}:{method}")
    return found


def _credit(said: Mapping[str, Any], now: datetime) -> tuple[Credit | None, str]:
    """Read one credit, or say why it is left out."""
    name = str(said.get("creditId", ""))
    if said.get("creditStatus", "ENABLED") != "ENABLED":
        return None, f"credit {name} is switched off"
    left = _usd(said.get("remainingAmount"))
    if left is None:
        return None, f"credit {name} is not in USD"
    # The estimate has the open bills taken off already.
    estimated = _usd(said.get("estimatedAmount"))
    credit = Credit(
        id=name,
        left_usd=left if estimated is None else min(left, estimated),
        initial_usd=_usd(said.get("initialAmount")),
        expires_at=_utc(said.get("endDate")),
        products=tuple(said.get("applicableProductNames") or ()),
        source=GET_CREDITS,
        read_at=now,
    )
    return credit, ""


def _account_notes(who: Mapping[str, Any]) -> tuple[str, ...]:
    """Recognize the learner labs by their role; their page has `voclabs` in its name."""
    return (_ACADEMY,) if "assumed-role/voclabs/" in str(who.get("Arn", "")) else ()


def _usd(amount: Mapping[str, Any] | None) -> Decimal | None:
    if not amount or amount.get("currencyCode", "USD") != "USD":
        return None
    return _decimal(amount.get("currencyAmount"))


def _decimal(text: Any) -> Decimal | None:
    try:
        value = Decimal(str(text))
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def _utc(moment: Any) -> datetime | None:
    return read_moment(moment) if isinstance(moment, datetime) else None
