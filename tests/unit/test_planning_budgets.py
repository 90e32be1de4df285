"""The term's budget before a launch: what fits, what is refused, what is warned, and what the instance itself keeps to."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from tests.unit.test_planning_plan import a_request, a_snapshot, an_offer

from gpulab.errors import CreditTooLow, Refused
from gpulab.fleet.plan import at_most_usd
from gpulab.launch.events import StartPlan
from gpulab.model.budget import TermBudget
from gpulab.model.fact import ended, launched, volume
from gpulab.model.market import Market
from gpulab.model.timeline import EndedBy
from gpulab.planning import plan_launch
from gpulab.planning.budgets import Extension, check_extension, lasts
from gpulab.spending.budget import term_budget
from gpulab.spending.facts import timeline_of
from gpulab.view.events import question_text
from gpulab.view.plan import plan_json, plan_text
from gpulab.view.words import money, span

NOW = datetime(2026, 10, 23, 18, tzinfo=UTC)


def planned(budget: TermBudget | None, **request):
    """Plan four hours at $0.21, at most $2.15."""
    return plan_launch(a_request(**request), a_snapshot(an_offer("0.21"), term_budget=budget))


def a_budget(spent: str, usd: str = "10", promised: str = "0") -> TermBudget:
    return TermBudget(Decimal(usd), Decimal(spent), Decimal(promised))


def test_what_does_not_fit_the_term_is_refused_with_the_hours_that_do():
    """The student set the limit for nights when nobody counts; the hint must work when it is typed."""
    with pytest.raises(CreditTooLow) as refusal:
        planned(a_budget("9"))

    fitting = planned(a_budget("9"), duration=timedelta(hours=1.8))

    assert 3 == refusal.value.exit_code
    assert (
        "this may cost up to $2.15, and $1.00 of the term's budget of $10.00 is left"
        == refusal.value.message
    )
    assert (
        "`--hours 1.8` fits, or `--budget 1.00` ends the instance when it has cost that"
        == refusal.value.hint
    )
    assert fitting.at_most_usd <= 1


def test_what_runs_is_counted_to_its_end():
    """Two instances that fit one by one must not overrun the budget together."""
    with pytest.raises(CreditTooLow) as refusal:
        planned(a_budget("6", promised="2.50"))

    assert "$1.50 of the term's budget of $10.00 is left beside $2.50 for what runs" in str(
        refusal.value
    )


def test_a_budget_that_is_spent_offers_no_hours():
    """`--hours 0` fits always and helps nobody."""
    with pytest.raises(CreditTooLow) as refusal:
        planned(a_budget("12"))

    assert (
        "`gpulab report` shows where it went; `gpulab init --budget` sets another"
        == refusal.value.hint
    )


def test_a_budget_of_its_own_lets_an_instance_start_on_the_rest():
    """The last dollar can be used: the instance ends itself when it is gone."""
    plan = planned(a_budget("9"), budget_usd=Decimal("1.00"))

    assert Decimal("1.00") == plan.request.budget_usd


@pytest.mark.parametrize(
    ("asked", "kept"), [(None, "7.99"), (Decimal("3"), "3"), (Decimal("9"), "7.99")]
)
def test_the_instance_keeps_to_what_is_left_of_the_term(asked, kept):
    """`gpulab extend` from a café must not spend more than the term allows, so the instance itself counts."""
    plan = planned(a_budget("2.001"), budget_usd=asked)

    assert Decimal(kept) == plan.request.budget_usd


@pytest.mark.parametrize(
    ("spent", "hours", "hint"),
    [
        pytest.param("9", 1, None, id="fits"),
        pytest.param("9", 3, "`gpulab extend week4 --hours 1` fits", id="the hours that fit"),
        pytest.param("9.5", 0.5, "`gpulab report` shows where it went", id="none fit"),
        pytest.param("10", -0.5, None, id="sooner"),
    ],
)
def test_an_extension_has_to_fit_what_is_left_of_the_term(spent, hours, hint):
    """One hour is still to go and an hour costs at most half a dollar, so with a dollar left one more fits."""
    ends_at = NOW + timedelta(hours=1)
    asked = Extension("week4", ends_at, ends_at + timedelta(hours=hours), Decimal("0.50"))

    try:
        check_extension(asked, a_budget(spent), now=NOW)
    except CreditTooLow as refusal:
        assert hint is not None
        assert refusal.hint.startswith(hint)
    else:
        assert hint is None


@pytest.mark.parametrize(
    ("spent", "hours", "hint"),
    [
        ("9", 3, "`gpulab fleet extend w1 --by 120m --only ID` fits, or raise `budget_usd` in"),
        ("9.5", 0.5, "Raise `budget_usd` in [course] of course.toml"),
    ],
)
def test_a_class_is_told_of_a_cause_without_a_name_and_what_its_teacher_can_do(spent, hours, hint):
    """The same words for everybody are one cause on the screen; `--by` counts from now, unlike a student's `--hours`."""
    ends_at = NOW + timedelta(hours=1)
    until = ends_at + timedelta(hours=hours)
    asked = Extension("w1-s1", ends_at, until, Decimal("0.50"), lab="w1")

    with pytest.raises(CreditTooLow) as refusal:
        check_extension(asked, a_budget(spent), now=NOW)

    assert refusal.value.message.startswith("it may cost up to $")
    assert refusal.value.hint.startswith(hint)


def test_an_instance_of_unknown_price_is_not_extended_into_a_limit():
    """What cannot be counted cannot be promised."""
    asked = Extension("week4", NOW, NOW + timedelta(hours=1), None)

    with pytest.raises(CreditTooLow, match="nobody knows what week4 costs") as refusal:
        check_extension(asked, a_budget("1"), now=NOW)

    assert "`gpulab ledger rebuild` reads its price from the account" == refusal.value.hint
    check_extension(asked, None, now=NOW)


def test_without_a_budget_nothing_changes():
    """Most people set none."""
    plan = planned(None)

    assert (None, ()) == (plan.request.budget_usd, plan.warnings)


@pytest.mark.parametrize(
    ("spent", "own", "said"),
    [
        ("2.8", None, ()),
        (
            "2.9",
            None,
            ("this may bring the term's budget of $10.00 to 51 % ($2.90 is spent)",),
        ),
        (
            "6",
            None,
            ("this may bring the term's budget of $10.00 to 82 % ($6.00 is spent)",),
        ),
        (
            "9",
            Decimal(1),
            (
                "the budget of $1.00 may end the instance before its time",
                "this may use up the term's budget of $10.00 ($9.00 is spent)",
            ),
        ),
    ],
)
def test_the_plan_warns_at_50_80_and_100_per_cent(spent, own, said):
    """Whoever reads it before saying yes can still choose fewer hours."""
    plan = planned(a_budget(spent), budget_usd=own)

    assert said == plan.warnings


def a_launch(instance_id: str, owner: str = "", hours: int = 3):
    return launched(
        instance_id,
        at=NOW - timedelta(hours=1),
        zone="us-east-1d",
        instance_type="g4dn.xlarge",
        market=Market.ON_DEMAND,
        usd_per_hour=Decimal("0.50"),
        owner=owner,
        expires_at=NOW + timedelta(hours=hours),
    )


def test_the_ledger_says_what_is_spent_and_what_is_promised():
    """An hour has run at $0.50 and three are to come, with a disk of $0.10 an hour."""
    disk = volume(
        "v",
        at=NOW,
        type="gp3",
        size_gb=930,
        usd_per_gb_month=Decimal("0.08"),
        instance_id="i-1",
    )

    found = term_budget(timeline_of([a_launch("i-1"), disk]), Decimal(10), owners={None}, now=NOW)

    assert (Decimal("0.5"), Decimal("1.8"), Decimal("7.7")) == (
        found.spent_usd,
        found.promised_usd,
        found.left_usd,
    )


def test_what_has_ended_and_what_is_late_promises_nothing():
    """An instance past its end may be gone unseen; its time to come is not kept for it."""
    gone = ended("i-1", at=NOW, by=EndedBy.USER)

    found = term_budget(
        timeline_of([a_launch("i-1"), gone, a_launch("i-2", hours=0)]),
        Decimal(10),
        owners={None},
        now=NOW,
    )

    assert (Decimal(1), Decimal(0)) == (found.spent_usd, found.promised_usd)


def test_others_in_a_shared_account_spend_nothing_of_mine():
    """A rebuilt ledger of a course account holds everybody's instances."""
    facts = [a_launch("i-1", owner="mine"), a_launch("i-2", owner="theirs")]

    found = term_budget(timeline_of(facts), Decimal(10), owners={"mine"}, now=NOW)

    assert Decimal("0.5") == found.spent_usd


def test_a_budget_of_nothing_is_used_up():
    """`budget_usd = 0` in the configuration means that nothing may be spent, and divides by nothing."""
    nothing = replace(a_budget("0"), usd=Decimal(0))

    assert (100, Decimal(0)) == (nothing.level(Decimal(0)), nothing.left_usd)


def test_a_budget_that_sets_the_end_is_counted_in_what_the_plan_says():
    """Beside a budget of a quarter, "at most $4.86" and "ends in 4 h" would be agreed to and both be untrue."""
    plan = planned(None, budget_usd=Decimal("0.25"))

    said = plan_text(plan, now=NOW)

    life = lasts(plan)
    assert life is not None
    assert (
        f"  ends      when $0.25 is used up, in about {span(life)} at today's price; at the" in said
    )
    most = at_most_usd(plan)
    assert Decimal("0.25") <= most < plan.at_most_usd
    assert f"  costs     at most {money(most)} until" in said
    assert f"Start it, at most {money(most)}?" == question_text(StartPlan(plan), now=NOW)
    assert most == plan_json(plan)["at_most_usd"]
    assert ", about $0.25 at today's price" in said
    # The end is said as the budget's already; a note with the same would make two of one.
    assert () == plan.warnings


def test_the_worst_case_names_the_type_it_comes_from_and_the_way_to_rule_it_out():
    """Four hours of a g4dn.xlarge at $0.21 and "at most $3.06" do not fit, where nobody says that a larger one may come."""
    cheap, dear = an_offer("0.21"), an_offer("0.30", kind="g4dn.2xlarge")
    both = plan_launch(a_request(), a_snapshot(cheap, dear))
    alone = plan_launch(a_request(instance_type="g4dn.xlarge"), a_snapshot(cheap, dear))

    said, named = plan_text(both, now=NOW), plan_text(alone, now=NOW)

    only = money(alone.at_most_usd)
    assert f" (a g4dn.2xlarge at up to $0.7520/h; with `--type g4dn.xlarge` {only})" in said
    assert f"at most {only} until" in named
    assert "at up to" not in named


def test_a_budget_of_some_minutes_is_refused_with_one_that_lasts():
    """It would be used up while the instance sets itself up: all of it wasted."""
    with pytest.raises(Refused) as refusal:
        planned(None, budget_usd=Decimal("0.01"))

    minutes = planned(None, budget_usd=Decimal("0.01"), duration=timedelta(minutes=9))
    assert Decimal("0.01") == minutes.request.budget_usd
    assert refusal.value.message.startswith("a budget of $0.01 ends the instance after ")
    assert refusal.value.hint.endswith(" lasts an hour at today's price")
