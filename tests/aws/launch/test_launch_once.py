"""One launch makes at most one instance, whatever breaks: kills at every boundary, lost answers, eventual consistency."""

from __future__ import annotations

import json

import pytest

from gpulab.errors import Ambiguous, Refused, StoreError, Throttled
from gpulab.launch.events import Launched, Repeating, Resumed
from gpulab.launch.protocol import resuming
from gpulab.store.journal import Journal


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


def test_a_reply_lost_once_is_asked_again_with_the_same_token(sandbox, student):
    """The instance was made; asking another zone would have made a second one."""
    sandbox.lose_reply("RunInstances")

    run = student.up()

    assert [run.instance.id] == student.live()
    assert ["Ambiguous"] == [type(e.error).__name__ for e in run.of(Repeating)]


def test_a_request_lost_on_the_way_is_sent_again(sandbox, student):
    """Nothing was made; the repetition makes the one."""
    sandbox.drop_request("RunInstances")

    run = student.up()

    assert [run.instance.id] == student.live()


def test_a_server_error_after_the_effect_is_no_reason_for_another_zone(sandbox, student):
    """HTTP 500 says nothing about what happened."""
    sandbox.fail_after_effect("RunInstances", "InternalError")

    run = student.up()

    assert [run.instance.id] == student.live()
    assert 1 == len(run.of(Launched))


def test_every_reply_lost_leaves_an_open_launch_that_the_next_command_adopts(sandbox, student):
    """The connection is down for minutes; the instance runs, nobody knows, and the next `up` finds it."""
    sandbox.lose_reply("RunInstances", times=None)
    first = student.up()
    sandbox.faults.clear()

    second = student.again().up()

    assert Ambiguous is type(first.error)
    assert [second.instance.id] == student.live()
    assert ["Resumed"] == second.told()[:1]


def test_every_request_lost_then_a_new_command_makes_exactly_one(sandbox, student):
    """Nothing was ever made; the open launch is asked for again with its token, then it runs."""
    sandbox.drop_request("RunInstances", times=None)
    first = student.up()
    sandbox.faults.clear()

    second = student.again().up()

    assert Ambiguous is type(first.error)
    assert [second.instance.id] == student.live()


def test_throttling_that_does_not_end_stays_one_launch(sandbox, student):
    """A class of 300 in one account meets this; the launch is repeated later, never elsewhere."""
    sandbox.refuse("RunInstances", "RequestLimitExceeded", status=503)
    first = student.up()
    sandbox.faults.clear()

    second = student.again().up()

    assert Throttled is type(first.error)
    assert [second.instance.id] == student.live()


@pytest.mark.parametrize(
    "moment", ["before the call", "after the call", "before the result is written"]
)
def test_a_kill_at_any_moment_leads_to_one_instance(sandbox, student, monkeypatch, moment):
    """A closed laptop at the worst moment: the same command again finds or makes the one."""
    _kill(monkeypatch, moment)
    with pytest.raises(Killed):
        student.up()
    monkeypatch.undo()

    second = student.again().up()

    assert [second.instance.id] == student.live()
    assert [] == list(Journal(student.context.folder.journal).read().open_intents)


@pytest.mark.parametrize("moment", ["after the call", "before the result is written"])
def test_a_kill_followed_at_once_finds_what_a_listing_does_not_show_yet(
    sandbox, student, monkeypatch, moment
):
    """EC2 hides a fresh instance from filters for a while: looking by tag alone would launch a second one."""
    _kill(monkeypatch, moment)
    with pytest.raises(Killed):
        student.up()
    monkeypatch.undo()

    second = student.again().up()

    assert [second.instance.id] == student.live()
    assert 1 == len(second.of(Resumed))


def test_up_right_after_a_launch_opens_the_same_instance(sandbox, student, monkeypatch):
    """The journal knows the instance though the listing does not yet."""
    monkeypatch.setattr("gpulab.launch.protocol.attempts.until_running", _killed)
    with pytest.raises(Killed):
        student.up()
    monkeypatch.undo()

    second = student.again().up()

    assert [second.instance.id] == student.live()


def test_up_again_for_a_name_that_is_up_starts_nothing(sandbox, student):
    """Typing the same command twice costs nothing."""
    first = student.up()
    sandbox.advance(seconds=300)

    second = student.again().up()

    assert (first.instance.id, ["AlreadyUp"]) == (second.instance.id, second.told()[:1])
    assert 1 == len(student.live())


def test_another_computer_finds_a_name_that_is_up_by_its_tags(sandbox, student, make_student):
    """No state travels between a student's two computers; the tags are the truth."""
    first = student.up()
    sandbox.advance(seconds=300)

    second = make_student().up()

    assert (first.instance.id, 1) == (second.instance.id, len(student.live()))


def test_another_wish_after_a_lost_launch_does_not_start_the_old_one(sandbox, student):
    """The user asked for an L4 now; the T4 that never started must not start any more."""
    sandbox.drop_request("RunInstances", times=None)
    student.up()
    sandbox.faults.clear()

    second = student.again().up(instance_type="g6.xlarge")

    assert "g6.xlarge" == second.instance.place.instance_type
    assert [second.instance.id] == student.live()


def test_an_old_open_launch_that_nobody_sees_is_closed_not_started(sandbox, student):
    """An hour later its deadline is wrong; ten minutes are enough for EC2 to show whatever it made."""
    sandbox.drop_request("RunInstances", times=None)
    student.up()
    sandbox.faults.clear()
    sandbox.advance(seconds=3600)

    left = resuming.look_back(student.again().context)

    assert () == left
    assert [] == student.live()


def test_a_read_command_never_launches(sandbox, student):
    """`gpulab ls` settles what it can by looking, and names the rest."""
    sandbox.drop_request("RunInstances", times=None)
    student.up()
    sandbox.faults.clear()
    before = len(sandbox.calls)

    left = resuming.look_back(student.again().context)

    assert ["week4"] == [i.name for i in left]
    assert "RunInstances" not in student.operations(before)


def test_the_token_belongs_to_the_attempt_and_its_place(sandbox, student):
    """The same token in another zone would make a second instance (AWS counts tokens per zone)."""
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", times=2)
    student.up()

    lines = student.context.folder.journal.read_text(encoding="utf-8").splitlines()
    intents = [r for r in map(json.loads, lines) if r["kind"] == "intent"]

    assert ["launch0001-1", "launch0001-2", "launch0001-3"] == [i["token"] for i in intents]
    assert 3 == len({i["parameters"]["Placement"]["AvailabilityZone"] for i in intents})


def test_without_a_journal_nothing_is_launched(sandbox, student):
    """A full disk: without the record a lost answer would become a second instance."""
    student.context.folder.journal.mkdir(parents=True)

    run = student.up()

    assert StoreError is type(run.error)
    assert "RunInstances" not in student.operations()


def test_two_terminals_cannot_launch_one_name_at_once(sandbox, student):
    """The second one is told, instead of paying twice."""
    with student.context.journal.launching("week4"):
        run = student.again().up()

    assert Refused is type(run.error)
    assert "another gpulab is launching week4 right now" == run.error.message


def test_a_refused_resend_frees_the_way_for_a_new_plan(sandbox, student):
    """The zone of the interrupted launch is full now: then it was never made, and the next zone is asked."""
    sandbox.drop_request("RunInstances", times=None)
    zone = student.up().events[1].offer.place.zone
    sandbox.faults.clear()
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", zone=zone)

    second = student.again().up()

    assert zone != second.instance.place.zone
    assert [second.instance.id] == student.live()


def test_a_token_whose_instance_has_ended_gets_a_new_attempt(sandbox, student):
    """AWS remembers tokens for a day after the instance has ended."""
    sandbox.refuse("RunInstances", "IdempotentInstanceTerminated", times=1)

    run = student.up()

    assert [run.instance.id] == student.live()


def test_a_token_used_with_other_parameters_is_adopted_not_repeated(sandbox, student):
    """Whatever differs, the token has made its instance: that one is taken."""
    sandbox.lose_reply("RunInstances", times=1)
    sandbox.refuse(
        "RunInstances", "IdempotentParameterMismatch", skip=0, times=1, contains="launch0001-1"
    )
    sandbox.advance(seconds=1)

    run = student.up()
    again = run if run.instance else student.again().up()

    assert [again.instance.id] == student.live()


def _killed(*_args, **_more):
    raise Killed


def _kill(monkeypatch, moment):
    from gpulab.aws import instances

    if moment == "before the call":
        monkeypatch.setattr(instances, "run", _killed)
    elif moment == "after the call":
        real = instances.run

        def run_then_die(*args, **more):
            real(*args, **more)
            raise Killed

        monkeypatch.setattr(instances, "run", run_then_die)
    else:
        monkeypatch.setattr(Journal, "conclude", _killed)
