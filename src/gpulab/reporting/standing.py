"""Where each student stands: not started, fine, about to run out, over. Hides the pace; refuses nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from gpulab.model.course import Student
from gpulab.model.discrepancy import Discrepancy, DiscrepancyKind
from gpulab.model.report import Standing, StudentStanding
from gpulab.spending.forecast import lasts_until


@dataclass(frozen=True)
class Budget:
    """
    What each student may spend.

    Attributes:
        usd: `None` for no limit.
        deadline: Until when it has to last; `None` when nobody said.
    """

    usd: Decimal | None = None
    deadline: datetime | None = None


def standings_of(
    students: Iterable[Student],
    *,
    spent: Mapping[str, Decimal],
    week: Mapping[str, Decimal],
    budget: Budget,
    now: datetime,
    has_names: bool,
) -> tuple[StudentStanding, ...]:
    """
    Compare each student's spending with the budget.

    Args:
        spent: USD by owner; owners without a student come after the students.
        week: USD of the last seven days, by owner.
        has_names: Whether names may be shown.
    """
    known = {student.owner: student for student in students}
    owners = [*known, *sorted(owner for owner in spent if owner not in known)]
    return tuple(
        _standing(
            owner,
            known.get(owner),
            spent=spent.get(owner),
            week_usd=week.get(owner, Decimal(0)),
            budget=budget,
            now=now,
            has_names=has_names,
        )
        for owner in owners
    )


def _standing(
    owner: str,
    student: Student | None,
    *,
    spent: Decimal | None,
    week_usd: Decimal,
    budget: Budget,
    now: datetime,
    has_names: bool,
) -> StudentStanding:
    paid = spent or Decimal(0)
    left = None if budget.usd is None else budget.usd - paid
    ends_at = None if left is None else lasts_until(max(left, Decimal(0)), week_usd / 168, now=now)
    standing = Standing.FINE
    if spent is None:
        standing = Standing.NOT_STARTED
    elif left is not None and left < 0:
        standing = Standing.OVER
    elif ends_at and budget.deadline and ends_at < budget.deadline:
        standing = Standing.RUNS_OUT
    return StudentStanding(
        owner=owner,
        name=student.name if student and has_names else "",
        group=student.group if student else "",
        standing=standing,
        spent_usd=paid,
        budget_usd=budget.usd,
        left_usd=None if left is None else max(left, Decimal(0)),
        ends_at=ends_at,
    )


def standing_problems(standings: Iterable[StudentStanding]) -> tuple[Discrepancy, ...]:
    """Name everybody who is over budget."""
    return tuple(
        Discrepancy(
            DiscrepancyKind.OVER_BUDGET,
            one.owner,
            f"spent {one.spent_usd:.2f} USD of a budget of {one.budget_usd:.2f} USD",
        )
        for one in standings
        if one.standing is Standing.OVER
    )
