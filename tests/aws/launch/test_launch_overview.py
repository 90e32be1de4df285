"""Looking: what runs and what it would cost, complete, or it says what is missing."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gpulab.errors import Unreachable, WrongUsage
from gpulab.launch.offers.look import spot_and_on_demand
from gpulab.launch.running import instances, overview, stop
from gpulab.launch.upkeep import sweep
from gpulab.planning.catalogue import instance_types
from gpulab.spending.facts import timeline_of
from gpulab.view.instances import rows_text, totals_text

TWO_REGIONS = ("us-east-1", "eu-north-1")


def test_a_region_that_does_not_answer_is_named_beside_the_list(sandbox, make_student):
    """Whoever reads that nothing runs closes the laptop; an instance in a region nobody read goes on costing."""
    student = make_student(regions=TWO_REGIONS)
    sandbox.refuse("DescribeInstances", "UnauthorizedOperation", region="eu-north-1")

    seen = overview.look(student.context, ask_instances=False)

    assert () == seen.rows
    assert ["eu-north-1 was not read"] == [note.partition(":")[0] for note in seen.notes]


def test_an_unread_region_is_named_when_no_instance_fits(sandbox, make_student):
    """`gpulab stop` must not say that nothing is up when it could not look everywhere."""
    student = make_student(regions=TWO_REGIONS)
    sandbox.refuse("DescribeInstances", "UnauthorizedOperation", region="eu-north-1")

    with pytest.raises(WrongUsage) as refused:
        instances.find(student.context, None)

    assert refused.value.message.startswith("no instance is up; eu-north-1 was not read: ")


def test_what_has_ended_is_shown_only_when_asked_for(student):
    """After a lab a student looks up what it was and what it cost; the daily list stays short."""
    instance = student.up("week4").instance
    list(stop.stop(student.context, instance, save=False))

    daily = overview.look(student.context, ask_instances=False)
    full = overview.look(student.context, with_ended=True, ask_instances=False)

    assert () == daily.rows
    assert [("week4", "terminated")] == [
        (row.instance.name, str(row.instance.state)) for row in full.rows
    ]


def test_an_instance_that_aws_took_back_is_closed_in_the_books_by_the_next_look(sandbox, student):
    """Otherwise reports charge it until today, although it ended and nobody did anything wrong."""
    instance = student.up("week4").instance
    sandbox.advance(seconds=1800)
    sandbox.interrupt(instance.id)
    sandbox.advance(seconds=600)

    overview.look(student.context, ask_instances=False)

    (life,) = timeline_of(student.context.ledger.facts()).timeline.instances
    assert instance.id == life.id
    assert life.runs[-1].ends_at is not None and life.runs[-1].ends_at < sandbox.now()


def test_what_has_ended_costs_nothing_in_the_list(student):
    """A dead instance with a price per hour and an end to come makes a student look for it."""
    instance = student.up("week4").instance
    list(stop.stop(student.context, instance, save=False))

    rows = overview.look(student.context, with_ended=True, ask_instances=False).rows
    cells = rows_text(rows, now=student.context.now()).splitlines()[1].split("  ")

    assert "has ended" == cells[-2].strip()
    assert totals_text(rows).startswith("together $0.0000/h now")


def test_before_init_nobody_elses_instances_are_mine(sandbox, make_student):
    """In an account that a class shares, `gpulab stop --all` and `gpulab sweep --apply` must not end the neighbour's lab."""
    make_student(owner="5fbfc3a218").up("week4")
    newcomer = make_student()
    sandbox.advance(seconds=3600)

    seen = overview.look(newcomer.context, ask_instances=False)
    left = sweep.look(newcomer.context)

    assert () == seen.rows
    assert () == (*left.found, *left.untouchable)


class _Gone:
    """An instance that answers nobody; it says how long it was waited for."""

    def __init__(self, waited: list[float]) -> None:
        self._waited = waited

    def run(self, command, *, timeout_s, **how):
        self._waited.append(timeout_s)
        raise Unreachable("no answer")


def test_an_instance_that_does_not_answer_holds_the_list_up_for_a_moment_only(
    sandbox, student, monkeypatch
):
    """`gpulab ls` is typed to see what costs; one that hangs or boots must not hide the others for long."""
    for name in ("week4", "week5"):
        student.up(name)
    sandbox.advance(seconds=60)
    waited: list[float] = []
    monkeypatch.setattr("gpulab.launch.context.Context.host", lambda self, target: _Gone(waited))

    rows = overview.look(student.context).rows

    assert [("week4", True), ("week5", True)] == [(r.instance.name, r.is_silent) for r in rows]
    assert 2 == len(waited)
    assert max(waited) < 5


def test_a_price_list_that_is_denied_leaves_the_shipped_price_each_time(sandbox, student):
    """On-demand prices cap what a spot instance can cost; the second plan must know them as the first did."""
    sandbox.advance(seconds=400 * 86400)
    sandbox.deny("pricing:GetProducts")
    kinds = [kind for kind in instance_types() if kind.name == "g4dn.xlarge"]

    first, second = (
        {
            o.on_demand_usd_per_hour
            for o in spot_and_on_demand(student.context, ["us-east-1"], kinds)
        }
        for _ in range(2)
    )

    assert ({Decimal("0.526")}, {Decimal("0.526")}) == (first, second)


def test_a_busy_price_list_is_asked_again_the_next_time(sandbox, student):
    """A throttled call says nothing about the price; remembered as "none" it would hide the real one for a week."""
    sandbox.advance(seconds=400 * 86400)
    sandbox.refuse("GetProducts", "ThrottlingException", times=12)
    kinds = [kind for kind in instance_types() if kind.name == "g4dn.xlarge"]

    spot_and_on_demand(student.context, ["us-east-1"], kinds)
    asked = student.operations().count("GetProducts")
    spot_and_on_demand(student.context, ["us-east-1"], kinds)

    assert student.operations().count("GetProducts") > asked
