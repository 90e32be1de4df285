"""The ends that the account schedules for a class: the only ones that work with the laptop shut and an instance hung."""

from __future__ import annotations

from datetime import timedelta

import pytest

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
