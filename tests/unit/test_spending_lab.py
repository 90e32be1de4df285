"""What a lab and a term have cost by a ledger, with ends that nobody wrote down."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gpulab.model.fact import Fact, ended, launched, volume
from gpulab.model.market import Market
from gpulab.model.timeline import EndedBy
from gpulab.spending.facts import timeline_of
from gpulab.spending.lab import CourseSpending, course_spending

BEGUN = datetime(2026, 9, 7, 11, tzinfo=UTC)
PLANNED = BEGUN + timedelta(hours=4)


def a_launch(name: str, *, lab: str = "w1", course: str = "c1") -> list[Fact]:
    """One instance at a dollar an hour, with a disk of 10.08 GB months for a dollar: 0.014 an hour in September."""
    return [
        launched(
            name,
            at=BEGUN,
            zone="us-east-1a",
            instance_type="g4dn.xlarge",
            market=Market.ON_DEMAND,
            usd_per_hour=Decimal(1),
            on_demand_usd_per_hour=Decimal(1),
            launch_id="l",
            name=f"{lab}-{name}",
            owner=name,
            course=course,
            lab=lab,
            gpus=1,
            expires_at=PLANNED,
        ),
        volume(
            f"vol-{name}",
            at=BEGUN,
            type="gp3",
            size_gb=72,
            usd_per_gb_month=Decimal("0.1"),
            instance_id=name,
            ends_with_instance=True,
        ),
    ]


def spent(facts: list[Fact], *, hours: int, alive: set[str] | None) -> CourseSpending:
    now = BEGUN + timedelta(hours=hours)
    return course_spending(timeline_of(facts), course="c1", lab="w1", alive=alive, now=now)


@pytest.mark.parametrize(
    ("alive", "hours", "lab_usd", "per_hour"),
    [
        pytest.param({"i-1"}, 2, "2.02", "1.01", id="it runs"),
        pytest.param({"i-1"}, 5, "5.05", "1.01", id="it was extended and runs"),
        pytest.param(set(), 24, "4.04", "0", id="it ended unseen: until its planned end"),
        pytest.param(set(), 2, "2.02", "0", id="it ended unseen before its planned end: until now"),
        pytest.param(None, 24, "24.24", "1.01", id="nobody could look: it is taken to run"),
    ],
)
def test_an_end_nobody_wrote_down_does_not_cost_for_ever(alive, hours, lab_usd, per_hour):
    """Students' instances end themselves; the teacher's ledger learns of it late or never."""
    found = spent(a_launch("i-1"), hours=hours, alive=alive)

    assert (Decimal(lab_usd), Decimal(per_hour)) == (found.lab_usd, found.usd_per_hour)


def test_an_end_that_is_written_down_counts():
    """What was stopped early costs until then, disk and all."""
    stopped = ended("i-1", at=BEGUN + timedelta(hours=1), by=EndedBy.USER, is_final=True)

    found = spent([*a_launch("i-1"), stopped], hours=9, alive=set())

    assert CourseSpending(Decimal("1.01"), Decimal("1.01"), Decimal(0)) == found


def test_other_labs_are_of_the_term_and_other_courses_of_neither():
    """One account may serve two courses, and a lab must not pay for last week's."""
    facts = [
        *a_launch("i-1"),
        *a_launch("i-2", lab="w0"),
        *a_launch("i-3", course="c2"),
    ]

    found = spent(facts, hours=2, alive={"i-1"})

    assert (Decimal("2.02"), Decimal("4.04")) == (found.lab_usd, found.term_usd)


def test_accounts_add_up():
    """Three hundred students' own ledgers are one class."""
    one = CourseSpending(Decimal(1), Decimal(2), Decimal(3))

    assert CourseSpending(Decimal(2), Decimal(4), Decimal(6)) == one + one
