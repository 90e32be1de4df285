"""What an account does by itself against running costs, and whether it is armed. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal


@dataclass(frozen=True)
class GuardCheck:
    """
    One guard, as it was read back.

    Attributes:
        name: What guards, two or three words.
        text: What is armed, or why it is not; a half-sentence.
        hint: What to do; empty when it is armed.
    """

    name: str
    is_armed: bool
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Principals:
    """
    Whose launches a budget forbids, by their names in IAM.

    Attributes:
        users, roles: Names without a path; sorted.
    """

    users: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anybody."""
        return bool(self.users or self.roles)

    def __str__(self) -> str:
        """Name them as IAM does: `user/ann, role/lab`."""
        return ", ".join([*(f"user/{n}" for n in self.users), *(f"role/{n}" for n in self.roles)])


@dataclass(frozen=True)
class AccountBudget:
    """
    A budget of AWS Budgets.

    Attributes:
        limit_usd: For its period.
        spent_usd: As AWS knows it: 8 to 12 hours late and more.
        counts_gross: Whether credits and refunds are left out, so that it moves while credit pays.
        alerts: Percent of the limit -> the e-mail addresses that are told; actual cost only.
    """

    limit_usd: Decimal
    spent_usd: Decimal
    counts_gross: bool
    alerts: dict[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class BudgetAction:
    """
    What a budget does by itself.

    Attributes:
        status: AWS's word: `STANDBY`, `EXECUTION_SUCCESS`, ...
        percent: At which share of the limit; `None` for an amount, or a forecast.
    """

    id: str
    status: str
    policy_arn: str
    role_arn: str
    targets: Principals
    percent: int | None
    is_automatic: bool
