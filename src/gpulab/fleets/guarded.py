"""
Whether an account holds a course to its budget: AWS's own budget, whom it tells, and that it forbids launches when it is spent.

Reads what AWS Budgets says and nothing of IAM, which the course's role may not look at. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpulab.aws import budgets, denying
from gpulab.errors import GpulabError, NotAllowed
from gpulab.fleets.accounts import Account, Accounts
from gpulab.launch.context import Context
from gpulab.launch.upkeep.guards import budget_name
from gpulab.model.budget import LEVELS
from gpulab.model.check import Check
from gpulab.model.guard import AccountBudget, BudgetAction
from gpulab.model.typed import typed

OK, WARNING, FAILED = "ok", "warning", "failed"
_NAME = "guards"
_FULL = 100
_ACTS = frozenset({"STANDBY", "EXECUTION_IN_PROGRESS", "EXECUTION_SUCCESS"})


def guards(accounts: Accounts, account: Account, number: str) -> Check:
    """
    Say whether the account's guards are armed.

    Args:
        number: The account's twelve digits.
    """
    context = _theirs(accounts, account)
    hint = _hint(accounts, account)
    try:
        budget = budgets.read_budget(context.cloud, number, budget_name(context))
        acts = budgets.read_actions(context.cloud, number, budget_name(context)) if budget else ()
    except NotAllowed:
        text = "nobody knows whether they are armed: the budget may not be read"
        return Check(_NAME, WARNING, text, hint)
    except GpulabError as error:
        return Check(_NAME, WARNING, error.message, error.hint or hint)
    if budget is None:
        text = "not armed: AWS itself has no budget for the course"
        return Check(_NAME, WARNING, text, hint)
    ours = denying.policy_arn(number, context.owner)
    return _judged(budget, [a for a in acts if a.policy_arn == ours], hint)


def _theirs(accounts: Accounts, account: Account) -> Context:
    """Choose whose guards count: the stack's of a student's account, else those that `gpulab guard arm` makes for the profile."""
    if account.ref.role_arn:
        return account.context
    return account.of(accounts.outside.config.profile(account.ref.profile).owner)


def _judged(budget: AccountBudget, actions: list[BudgetAction], hint: str) -> Check:
    limit = f"${budget.limit_usd:,.2f}"
    untold = _untold(budget.alerts)
    acting = [a for a in actions if a.percent == _FULL and a.is_automatic and a.status in _ACTS]
    if any(action.status == "EXECUTION_SUCCESS" for action in acting):
        text = f"the budget of {limit} is spent: the account forbids every launch"
        return Check(_NAME, FAILED, text, _LIFT)
    if not budget.counts_gross:
        text = "the budget counts credits, so it does not move while credit pays"
        return Check(_NAME, WARNING, text, hint)
    if not acting:
        return Check(_NAME, WARNING, f"the budget of {limit} forbids no launch", hint)
    if untold:
        return Check(_NAME, WARNING, f"the budget of {limit} tells nobody at {untold} %", hint)
    return Check(_NAME, OK, f"{limit} before credits, then no launches; e-mails before that")


def _untold(alerts: Mapping[int, tuple[str, ...]]) -> str:
    return ", ".join(str(level) for level in LEVELS if not alerts.get(level))


_LIFT = (
    "Its owner raises the budget and detaches the policy `gpulab-no-launches-…` from the role or user"
    " (`gpulab guard arm` does both where the profile reaches the account)"
)


def _hint(accounts: Accounts, account: Account) -> str:
    if not account.ref.role_arn:
        profile = accounts.outside.config.option(account.ref.profile)
        return typed("guard arm --budget USD --email ADDRESS", profile=profile)
    if accounts.course.budget_usd is None:
        return (
            "`budget_usd` in course.toml, then `gpulab course enrol`: the new template makes them"
        )
    return "The student updates their stack with the template that `gpulab course enrol` writes"
