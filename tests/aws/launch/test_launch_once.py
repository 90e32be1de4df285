"""One launch makes at most one instance, whatever breaks: kills at every boundary, lost answers, eventual consistency."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from gpulab.errors import Ambiguous, NoCapacity, Refused, StoreError, Throttled
from gpulab.launch.events import (
    Launched,
    Planned,
    Question,
    Repeating,
    Resumed,
    StartPlan,
    WaitingFor,
    Warned,
)
from gpulab.launch.protocol import resuming
from gpulab.model.fact import FactKind
from gpulab.model.market import Market
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
    monkeypatch.setattr("gpulab.launch.protocol.attempts.until_settled", _killed)
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


def test_what_was_bought_on_demand_is_asked_for_again_with_its_token(sandbox, student):
    """The question was answered with yes and the answer of AWS was lost: the same command settles it, though its wish says spot only."""
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", contains="MarketType")
    sandbox.drop_request("RunInstances", times=None)
    first = student.up()
    sandbox.faults.clear()

    second = student.again().up(confirm=lambda question: pytest.fail("it was answered before"))

    assert Ambiguous is type(first.error)
    assert (Market.ON_DEMAND, "launch0001") == (
        second.instance.market,
        second.instance.launch_id,
    )
    assert [second.instance.id] == student.live()


@pytest.mark.parametrize("is_made", [True, False])
def test_what_was_bought_on_demand_is_not_asked_for_again_against_spot_only(
    sandbox, student, is_made
):
    """Killed while it bought on demand, and the next word typed is `--spot-only`: what runs is kept and told, what does not is never bought."""
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", contains="MarketType")
    lose = sandbox.lose_reply if is_made else sandbox.drop_request
    lose("RunInstances", times=None)
    student.up()
    sandbox.faults.clear()
    bought = student.live()
    before = len([c for c in sandbox.calls if c.operation == "RunInstances"])

    second = student.again().up(spot_only=True)

    asked = [c for c in sandbox.calls if c.operation == "RunInstances"][before:]
    assert [second.instance.id] == student.live()
    assert (bought or [second.instance.id]) == student.live()
    assert (Market.ON_DEMAND if is_made else Market.SPOT) is second.instance.market
    assert (0 if is_made else 1, int(is_made)) == (len(asked), len(second.of(Resumed)))


def test_spot_alone_is_not_asked_about_on_demand(sandbox, student):
    """`--spot-only` is the answer already, for whoever sits there as for a script."""
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", contains="MarketType")
    asked: list[Question] = []

    done = student.up(spot_only=True, confirm=lambda question: not asked.append(question))

    assert NoCapacity is type(done.error)
    assert [] == student.live()
    assert [StartPlan] == [type(question) for question in asked]


def test_what_is_not_wanted_any_more_is_looked_for_until_a_listing_must_show_it(
    sandbox, student, monkeypatch
):
    """It runs, unseen for a minute: given up sooner, it would cost beside the one that is launched instead."""
    other = student.up("gan").instance
    delays = replace(sandbox.rules.delays, consistency=timedelta(seconds=60))
    monkeypatch.setattr(sandbox, "rules", replace(sandbox.rules, delays=delays))
    sandbox.lose_reply("RunInstances", times=None)
    first = student.up()
    sandbox.faults.clear()

    second = student.again().up(instance_type="g6.xlarge")

    assert Ambiguous is type(first.error)
    assert [other.id, second.instance.id] == student.live()
    assert "g4dn.xlarge" == second.instance.place.instance_type
    assert {"open launch"} == {e.what for e in second.of(WaitingFor) if e.what != "running"}


@pytest.mark.parametrize("hours", [0, 5])
def test_the_wait_for_what_is_not_wanted_any_more_is_two_minutes(sandbox, student, hours):
    """Also where the clock was set back by hours since: whoever waits sees that, and it ends."""
    sandbox.drop_request("RunInstances", times=None)
    student.up()
    sandbox.faults.clear()
    again, now = student.again(), student.context.now
    again.context = replace(again.context, now=lambda: now() - timedelta(hours=hours))
    begun = sandbox.now()

    second = again.up(instance_type="g6.xlarge")

    planned = next(e.at for e in second.events if isinstance(e, Planned))
    waited = planned + timedelta(hours=hours) - begun
    assert timedelta(minutes=2) <= waited < timedelta(minutes=3)
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


@pytest.fixture
def full_after_the_call(monkeypatch):
    """A disk that has room for what is about to be asked, and none for what came of it."""

    def conclude(self, intent, outcome, *, instance_id="", at):
        monkeypatch.setattr("gpulab.store.journal._write_synced", _full)
        real(self, intent, outcome, instance_id=instance_id, at=at)

    real = Journal.conclude
    monkeypatch.setattr(Journal, "conclude", conclude)
    return monkeypatch


def _full(_path, _line):
    raise OSError(28, "No space left on device")


def test_a_launch_that_the_journal_cannot_take_down_is_told_and_goes_on(
    sandbox, student, full_after_the_call
):
    """It runs and costs: "nothing was launched" would leave it up, outside the ledger and without its scheduled end."""
    run = student.up()

    assert None is run.error
    assert [run.instance.id] == student.live()
    assert ["Launched", "Running"] == [n for n in run.told() if n in ("Launched", "Running")]
    assert [run.instance.id] == [f.subject for f in student.context.ledger.facts(FactKind.LAUNCHED)]
    (told,) = (e.text for e in run.of(Warned))
    assert told.startswith(f"{run.instance.id} was launched, and the journal could not take that")


def test_a_launch_that_the_journal_could_not_take_down_is_found_again(
    sandbox, student, full_after_the_call
):
    """With room on the disk the same command settles it, and with none it still opens what runs."""
    first = student.up().instance
    sandbox.advance(seconds=60)
    without_room = student.again().up()
    full_after_the_call.undo()

    with_room = student.again().up()

    assert [first.id] * 2 == [without_room.instance.id, with_room.instance.id]
    assert [first.id] == student.live()
    assert () == student.context.journal.read().open_intents


def test_a_refusal_that_the_journal_cannot_take_down_ends_the_launch(
    sandbox, student, full_after_the_call
):
    """Its place is asked again by the next command: an instance at another one now would be one of two."""
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", times=1)

    run = student.up()

    assert StoreError is type(run.error)
    assert [] == student.live()
    assert "InsufficientInstanceCapacity" in run.error.message
    assert run.error.hint.startswith("Nothing was launched. Free some space")


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
