"""The ends that the account schedules for a class: the only ones that work with the laptop shut and an instance hung."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gpulab.fleets.events import Unscheduled
from gpulab.view.fleet import sentence

REFUSED = "The execution role you provide must allow AWS EventBridge Scheduler to assume the role."


@pytest.fixture
def scheduler(sandbox, client):
    return client("scheduler")


def ending(scheduler):
    """Whom the account ends by itself, sorted."""
    names = [s["Name"] for s in scheduler.list_schedules()["Schedules"]]
    return sorted(f"i-{name.rpartition('-i-')[2]}" for name in names)


def ids(run):
    return sorted(o.instance.id for o in run.outcomes)


def test_ends_that_were_refused_at_the_launch_are_scheduled_once_the_class_runs(
    make_class, sandbox, scheduler
):
    """The course's role is seconds old at its first lab, and the scheduler does not take it at once."""
    klass = make_class(3)
    sandbox.refuse("CreateSchedule", "ValidationException", message=REFUSED, times=3)

    run = klass.up()

    assert ids(run) == ending(scheduler)
    assert [""] * 3 == [o.detail for o in run.outcomes]


def test_ends_that_stay_refused_are_said_and_scheduled_by_the_next_command(
    make_class, sandbox, scheduler
):
    """A bad hour of the scheduler; running it again is the answer to everything, so to this too."""
    klass = make_class(2)
    sandbox.refuse("CreateSchedule", "ValidationException", message=REFUSED, times=None)
    first, without = klass.up(), ending(scheduler)
    sandbox.faults.clear()

    second = klass.up()

    assert [] == without
    assert ["its end is not scheduled: "] * 2 == [o.detail[:26] for o in first.outcomes]
    assert ids(second) == ending(scheduler)
    assert ["kept"] * 2 == second.results()


def test_an_end_that_a_killed_command_never_asked_for_is_scheduled(make_class, sandbox, scheduler):
    """The ledger knows the launch already: it was written a moment before the kill."""
    klass = make_class(2)
    run = klass.up()
    names = [s["Name"] for s in scheduler.list_schedules()["Schedules"]]
    scheduler.delete_schedule(Name=names[0])

    klass.up()

    assert ids(run) == ending(scheduler)


def test_an_end_that_was_moved_stays_where_it_is(make_class, sandbox, scheduler):
    """The teacher extended the lab; `fleet up` for a seat that fell out is no reason to end the others early."""
    klass = make_class(1)
    klass.up()
    (before,) = (s["Name"] for s in scheduler.list_schedules()["Schedules"])
    known = scheduler.get_schedule(Name=before)
    later = (sandbox.now() + timedelta(hours=9)).strftime("at(%Y-%m-%dT%H:%M:%S)")
    scheduler.update_schedule(
        Name=before,
        ScheduleExpression=later,
        FlexibleTimeWindow=known["FlexibleTimeWindow"],
        Target=known["Target"],
    )

    klass.up()

    assert later == scheduler.get_schedule(Name=before)["ScheduleExpression"]


def test_an_end_that_cannot_be_read_is_said_and_left(make_class, sandbox, scheduler):
    """It may stand, and where: only the account knows."""
    klass = make_class(1)
    klass.up()
    sandbox.refuse("GetSchedule", "InternalServerException", status=500, times=None)
    calls = len(sandbox.calls)

    run = klass.up()

    assert run.outcomes[0].detail.startswith(
        "whether its end is scheduled is not known: could not read the scheduled end of i-"
    )
    assert "CreateSchedule" not in klass.operations(calls)


def said_of(run):
    return [e for e in run.events if isinstance(e, Unscheduled)]


def test_an_account_that_allows_no_role_for_ends_is_said_each_time_and_asked_once_a_day(
    make_class, sandbox
):
    """Nobody may believe that a hung instance ends while the laptop is shut; and IAM is not asked anew for each lab."""
    klass = make_class(2)
    sandbox.deny("iam:CreateRole")

    first, calls = klass.up(), len(sandbox.calls)
    klass.people = make_class(3).people
    second = klass.up()

    (event,) = said_of(first)
    assert ["launched"] * 2 == first.results()
    assert ("profile default",) == event.accounts
    assert "make the role gpulab-end-course-c1" in event.why
    assert sentence(event, now=sandbox.now()).startswith(
        "In profile default no end is scheduled in the account itself ("
    )
    assert [(event.accounts, event.why)] == [(e.accounts, e.why) for e in said_of(second)]
    assert "CreateRole" not in klass.operations(calls)


def test_one_bad_minute_of_iam_does_not_cost_a_day_of_scheduled_ends(
    make_class, sandbox, scheduler
):
    """A lab day is not to go without them because its first minute was a bad one."""
    klass = make_class(1)
    sandbox.refuse("CreateRole", "ServiceFailure", contains="gpulab-end-", status=500, times=None)
    first, without = klass.up(), ending(scheduler)
    sandbox.faults.clear()

    second = klass.up()

    assert 1 == len(said_of(first))
    assert [] == without == said_of(second)
    assert ids(second) == ending(scheduler)
