"""Where each student stands: not started, fine, about to run out, over. Hides the pace; refuses nobody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal

from gpulab.model.course import Student
from gpulab.model.discrepancy import Discrepancy, DiscrepancyKind
from gpulab.model.report import Pace, Standing, StudentStanding
from gpulab.spending.forecast import lasts_until

_WEEK_S = 7 * 86_400
_LONG = Context(prec=60)


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


def pace_of(budget: Budget, *, spent: Decimal, week_usd: Decimal, now: datetime) -> Pace | None:
    """
    Say how long a budget lasts at the last seven days' pace, and what that pace takes until the deadline.

    Args:
        budget: Of all together.
        week_usd: Spent in the last seven days.
    """
    if budget.usd is None:
        return None
    left = max(budget.usd - spent, Decimal(0))
    deadline = budget.deadline if budget.deadline and budget.deadline > now else None
    needed = None
    if deadline:
        needed = week_usd * int((deadline - now).total_seconds()) / _WEEK_S
    return Pace(
        usd_per_day=_rounded(week_usd / 7),
        ends_at=lasts_until(left, week_usd / 168, now=now),
        deadline=deadline,
        needed_usd=None if needed is None else _rounded(needed),
    )


def _rounded(usd: Decimal) -> Decimal:
    return usd.quantize(Decimal("1E-10"), context=_LONG)


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
