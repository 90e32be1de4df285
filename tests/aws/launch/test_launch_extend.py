"""Extending within the term's budget: what more time costs is said, kept, and refused where it does not fit."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from gpulab.errors import CreditTooLow, StoreError
from gpulab.launch.money.budget import term_budget
from gpulab.launch.running import extend
from gpulab.remote.process import Completed
from gpulab.spending.facts import timeline_of

# g4dn.xlarge on demand, up to which a spot price may rise, with 60 GiB of gp3 in a month of 30 days and an address.
WORST = Decimal("0.526") + Decimal(60) * Decimal("0.08") / 720 + Decimal("0.005")


class Host:
    """An instance over ssh whose agent takes the new end."""

    def run(self, command, **_more):
        return Completed(0, b"", "")


@pytest.fixture
def runs(make_student):
    """Make a student whose instance runs for four hours."""

    def make(**profile):
        student = make_student(**profile)
        student.instance = student.up().instance
        student.context = replace(student.context, connect=lambda target: Host())
        return student

    return make


def ends(student) -> list:
    return [launch.expires_at for launch in timeline_of(student.context.ledger.facts()).launches.values()]  # fmt: skip


def test_the_added_time_is_priced_at_the_worst(runs):
    """A spot price may rise to the on-demand price; what a student agrees to must hold then too."""
    student = runs()
    until = student.instance.expires_at + timedelta(hours=2)

    moved = extend.extend_within_budget(student.context, student.instance, until)

    assert (WORST * 2).quantize(Decimal("0.000001")) == moved.at_most_usd.quantize(
        Decimal("0.000001")
    )
    assert [until] == ends(student)


def test_an_end_that_may_overrun_the_budget_is_refused_and_nothing_is_moved(runs):
    """The limit that a launch keeps to must not be walked around by extending."""
    student = runs(budget_usd=Decimal("2.50"))
    before = student.instance.expires_at

    with pytest.raises(CreditTooLow) as refusal:
        extend.extend_within_budget(student.context, student.instance, before + timedelta(hours=1))

    assert (3, [before]) == (refusal.value.exit_code, ends(student))
    assert "week4 may cost up to $2.69 until then, and $2.4" in refusal.value.message
    assert refusal.value.message.endswith(" of the term's budget of $2.50 is left")
    assert "`gpulab extend week4 --hours 0.6` fits" == refusal.value.hint


def test_the_hours_of_the_hint_fit(runs):
    """A hint that is refused when it is typed is worse than none."""
    student = runs(budget_usd=Decimal("2.50"))
    until = student.instance.expires_at + timedelta(hours=0.6)

    extend.extend_within_budget(student.context, student.instance, until)

    assert [until] == ends(student)


def test_what_else_runs_is_kept_for_until_its_moved_end(runs):
    """Two instances that are extended one after the other must not overrun the budget together."""
    student = runs(budget_usd=Decimal(7))
    other = student.up("other").instance
    kept = term_budget(student.context).promised_usd
    later = other.expires_at + timedelta(hours=3)
    extend.extend_within_budget(student.context, other, later)

    with pytest.raises(CreditTooLow, match="for what else runs"):
        extend.extend_within_budget(
            student.context, student.instance, student.instance.expires_at + timedelta(hours=8)
        )

    assert term_budget(student.context).promised_usd > kept * Decimal("1.3")


def test_a_sooner_end_is_never_refused(runs):
    """Who has overspent must be able to end earlier."""
    student = runs(budget_usd=Decimal("2.50"))
    context = replace(
        student.context, profile=replace(student.context.profile, budget_usd=Decimal("0.01"))
    )

    moved = extend.extend_within_budget(
        context, student.instance, student.instance.expires_at - timedelta(hours=3)
    )

    assert (True, Decimal(0)) == (moved.agent, moved.at_most_usd)


@pytest.mark.parametrize("budget", [None, Decimal(50)])
def test_a_ledger_that_cannot_be_read_stops_only_who_set_a_limit(runs, budget):
    """A limit that cannot be checked is not passed; without one, a night of training goes on."""
    student = runs(budget_usd=budget)
    student.context.folder.ledger.write_bytes(
        b"no ledger at all, but long enough to be read as one"
    )
    until = student.instance.expires_at + timedelta(hours=1)

    try:
        moved = extend.extend_within_budget(student.context, student.instance, until)
    except StoreError:
        moved = None

    if budget is None:
        assert (True, None) == (moved.agent, moved.at_most_usd)
        assert moved.notes[-1].startswith("the ledger does not know the new end: ")
    else:
        assert moved is None
