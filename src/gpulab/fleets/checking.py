"""
Looking at every account of a course before the term: can it be reached, only as agreed, is there room and credit, and does it hold the course to its budget. Changes nothing.

Each check answers alone, as `gpulab doctor`'s do; one account that fails does not stop the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from decimal import Decimal

from gpulab.aws import accounts as aws_accounts
from gpulab.aws import market
from gpulab.aws.roles import Role, assume
from gpulab.aws.workspace_setup import read_rights_mark
from gpulab.errors import GpulabError, NotAllowed
from gpulab.fleet.enrolment import rights_mark
from gpulab.fleet.needs import Need
from gpulab.fleets.accounts import NOT_MADE_YET, SESSION, Account, Accounts
from gpulab.fleets.guarded import FAILED, OK, WARNING, guards
from gpulab.launch.money.credit import credit_left_usd
from gpulab.model.check import Check
from gpulab.model.market import Market, Quota
from gpulab.planning.quotas import CODES, raise_hint

_AT_ONCE = 32
_CENT = Decimal("0.01")
_NEW_STACK = "The student updates their stack with the template that `gpulab course enrol` writes"


@dataclass(frozen=True)
class AccountCheck:
    """
    What was found in one account.

    Attributes:
        checks: In the order they were made; the first, `way in`, alone when the account cannot be reached.
        credit_usd: What is left; `None` where the account does not say.
    """

    need: Need
    checks: tuple[Check, ...]
    credit_usd: Decimal | None = None

    @property
    def is_sound(self) -> bool:
        """Whether nothing stands in the way of a lab."""
        return all(check.state != FAILED for check in self.checks)


def check(accounts: Accounts, needs: Sequence[Need]) -> Iterator[AccountCheck]:
    """
    Look at accounts, many at once.

    Yields:
        One result for each, as they come.
    """
    with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(needs)))) as pool:
        for future in as_completed([pool.submit(_account, accounts, need) for need in needs]):
            yield future.result()


def _account(accounts: Accounts, need: Need) -> AccountCheck:
    try:
        account = accounts.account(need.account)
        who = aws_accounts.identity(account.context.cloud)
    except GpulabError as error:
        return AccountCheck(need, (Check("way in", FAILED, error.message, error.hint),))
    found = [Check("way in", OK, f"account {who.account_id}, as {who.name}")]
    if need.account.role_arn:
        found += [_external_id(accounts, need), _rights(accounts, account, need)]
    found.append(_plan(account))
    found += [_quota(accounts, account, family, n) for family, n in need.vcpus.items()]
    left, credit = _credit(account, need)
    last = (credit, guards(accounts, account, who.account_id), _kept(accounts, need))
    return AccountCheck(need, (*found, *last), left)


def _external_id(accounts: Accounts, need: Need) -> Check:
    """Ask for the role without the student's id: whoever gets it then, gets everybody's."""
    role = Role(need.account.role_arn, "", SESSION)
    try:
        assume(accounts.base(need.account), role)
    except NotAllowed:
        return Check("external id", OK, "without it the role is refused")
    except GpulabError as error:
        return Check("external id", WARNING, f"not tried: {error.message}", error.hint)
    return Check(
        "external id",
        FAILED,
        "the role can be assumed without the student's external id",
        "The student applies their template again: it asks for the id (`gpulab course enrol`)",
    )


def _rights(accounts: Accounts, account: Account, need: Need) -> Check:
    """Say whether the role may launch what the labs need now: it was made of what course.toml and the roster said then."""
    wanted = rights_mark(accounts.course, need.owners)
    try:
        mark = read_rights_mark(account.context.cloud, course=accounts.course.id)
    except GpulabError as error:
        return Check("rights", WARNING, f"not known: {error.message}", _NEW_STACK)
    if mark == wanted:
        return Check("rights", OK, "those of the course's labs and regions")
    text = "the role's rights are not those of the course's labs, regions and students now"
    return Check("rights", WARNING, text, _NEW_STACK)


def _plan(account: Account) -> Check:
    if aws_accounts.plan_type(account.context.cloud) == "FREE":
        return Check(
            "plan",
            FAILED,
            "an account on the Free plan cannot start a GPU",
            "Its owner upgrades it to the paid plan; the credits stay",
        )
    return Check("plan", OK, "not the Free plan")


def _quota(accounts: Accounts, account: Account, family: str, needed: int) -> Check:
    """Look for a region of the course with room for the account's largest lab, in the course's order."""
    name, code = f"quota {family}", CODES[(family, Market.SPOT)]
    read: list[Quota] = []
    for region in accounts.course.regions:
        try:
            limit = market.quota_limit(account.context.cloud, region, family, Market.SPOT)
        except GpulabError as error:
            return Check(name, WARNING, error.message, error.hint)
        if limit is None:
            return Check(name, WARNING, f"{region} does not say", "A launch will tell")
        if limit >= needed:
            return Check(name, OK, f"{limit:,} vCPUs (spot) in {region}, {needed:,} needed")
        read.append(Quota(code.code, code.name, region, family, Market.SPOT, limit, 0))
    limits = ", ".join(f"{q.limit_vcpus:,} in {q.region}" for q in read)
    hint = raise_hint(read[0], needed_vcpus=needed)
    return Check(name, FAILED, f"{limits}; {needed:,} vCPUs (spot) needed at once", hint)


def _kept(accounts: Accounts, need: Need) -> Check:
    """Say whether the work outlives an instance that ends by itself; asked anew, since a student may have updated the stack a minute ago."""
    account = accounts.find_keeping(need.account, anew=True)
    if account.keeping is not None:
        return Check("kept work", OK, account.keeping.shown)
    text = f"nothing keeps the work when an instance ends by itself: {account.unkept}"
    if account.unkept == NOT_MADE_YET:
        return Check("kept work", OK, text)
    return Check("kept work", WARNING, text, _NEW_STACK if need.account.role_arn else "")


def _credit(account: Account, need: Need) -> tuple[Decimal | None, Check]:
    left, _ = credit_left_usd(account.context, is_ledger_enough=True)
    if left is None:
        return None, Check("credit", WARNING, "the account does not say", "Its owner looks it up")
    text = f"${left.quantize(_CENT):,} left"
    budget = need.budget_usd
    if budget is not None and left < budget:
        short = f"{text}, the course allows ${budget.quantize(_CENT):,} until its end"
        return left, Check("credit", WARNING, short, "Redeem a credit code, or lower `budget_usd`")
    if left <= 0:
        return left, Check("credit", FAILED, text, "Redeem a credit code")
    return left, Check("credit", OK, text)
