"""A student's own instances on the dashboard: what runs, its dollars against the term's budget, and what could not be read."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from gpulab.dashboard.feed import Feed
from gpulab.dashboard.looking import OwnLook
from gpulab.view.dashboard import Standing

TWO_REGIONS = ("us-east-1", "eu-north-1")


def test_what_runs_stands_with_its_dollars_against_the_terms_budget(sandbox, student):
    """The two numbers a student looks for: what it costs now, and how much of the term is gone."""
    instance = student.up("week4").instance
    sandbox.advance(seconds=3600)
    profile = replace(student.context.profile, budget_usd=Decimal(50))

    (board,) = OwnLook(replace(student.context, profile=profile))()

    (tile,) = board.tiles
    assert (instance.id, "week4") == (tile.key, tile.who)
    assert tile.standing in (Standing.UP, Standing.STARTING)
    (gauge,) = board.gauges
    assert ("The term", Decimal(50), tile.spent_usd) == (
        gauge.title,
        gauge.budget_usd,
        gauge.spent_usd,
    )
    assert gauge.spent_usd > Decimal("0.1")


def test_no_region_that_answers_is_a_line_and_the_next_look_goes_on(sandbox, make_student):
    """The laptop wakes before its Wi-Fi does."""
    student = make_student(regions=TWO_REGIONS)
    feed = Feed("My instances", now=sandbox.now, sleep=sandbox.advance)
    sandbox.refuse("DescribeInstances", "UnauthorizedOperation")

    feed.look(OwnLook(student.context))
    lost = feed.state()
    sandbox.faults.clear()
    feed.look(OwnLook(student.context))

    assert 1 == len(lost["notes"])
    assert "could not look: " in lost["notes"][0]
    assert ([], "First look: nobody") == (
        feed.state()["notes"],
        feed.state()["log"][0]["text"],
    )
