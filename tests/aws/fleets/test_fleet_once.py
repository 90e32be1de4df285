"""A class gets exactly one instance each, whatever breaks: kills at every call, lost answers, running it twice."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pytest

from gpulab.errors import Refused
from gpulab.fleets import settling, up
from gpulab.fleets.events import Lost, Requested
from gpulab.model.fact import FactKind


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


class Killer:
    """Kills the process at its n-th call to AWS, before or after the call takes effect; the dead make no further call."""

    def __init__(self, sandbox, monkeypatch, *, at, after):
        self._handle, self._at, self._after, self._count = sandbox.handle, at, after, 0
        self.is_dead = False
        monkeypatch.setattr(sandbox, "handle", self)

    def __call__(self, call, forward):
        if self.is_dead:
            raise Killed
        self._count += 1
        if self._count == self._at and not self._after:
            self.is_dead = True
            raise Killed
        answer = self._handle(call, forward)
        if self._count == self._at:
            self.is_dead = True
            raise Killed
        return answer


def killed_run(klass, sandbox, monkeypatch, *, at, after):
    """Run `fleet up` until it is killed; true when it came to its end first."""
    with monkeypatch.context() as patch:
        killer = Killer(sandbox, patch, at=at, after=after)
        # The dead write nothing either.
        for name in ("intend", "conclude"):
            original = getattr(up.Journal, name)

            def guarded(self, *args, _original=original, **kwargs):
                if killer.is_dead:
                    raise Killed
                return _original(self, *args, **kwargs)

            patch.setattr(up.Journal, name, guarded)
        try:
            klass.up()
        except Killed:
            return False
    return True


def test_everybody_has_one_and_running_it_again_starts_nothing(make_class, sandbox):
    """The plain Monday, and the teacher who types it twice."""
    klass = make_class(3)

    first, calls = klass.up(), len(sandbox.calls)
    second = klass.up()

    assert ["launched"] * 3 == first.results()
    assert ["kept"] * 3 == second.results()
    assert klass.names() == klass.live()
    assert "RunInstances" not in klass.operations(calls)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_call_and_run_again_makes_exactly_one_each(
    make_class, sandbox, monkeypatch, after
):
    """The teacher's laptop dies mid-way; the same command again must neither double nor forget anybody."""
    whole = make_class(3)
    whole.up()
    calls = len(sandbox.calls)
    wrong, killed = [], 0
    for at in random.Random(3).sample(range(2, calls - 1), 8):
        klass = make_class(3)
        klass.course = replace(klass.course, id=f"k{at}-{after}".lower())

        finished = killed_run(klass, sandbox, monkeypatch, at=at, after=after)
        klass.up()

        killed += not finished
        live = _of_course(sandbox, klass.course.id)
        if klass.names() != live:
            wrong.append((at, live))

    assert [] == wrong
    assert 6 <= killed


def test_killed_twice_in_a_row_still_makes_one_each(make_class, sandbox, monkeypatch):
    """A flat battery, charged for a minute."""
    klass = make_class(3)

    killed_run(klass, sandbox, monkeypatch, at=13, after=True)
    killed_run(klass, sandbox, monkeypatch, at=4, after=True)
    klass.up()

    assert klass.names() == klass.live()


def test_a_launch_whose_answer_was_lost_is_adopted_not_doubled(make_class, sandbox):
    """The campus network drops for a minute; the instance runs, the answer never came."""
    klass = make_class(2)
    sandbox.lose_reply("RunInstances", times=10)

    first = klass.up()
    second = klass.up()

    assert ["failed", "failed"] == first.results()
    assert klass.names() == klass.live()
    assert set(second.results()) <= {"kept", "adopted"}


def test_a_launch_that_ended_before_anybody_knew_of_it_is_in_the_books(make_class, sandbox, ec2):
    """Nobody keeps what has ended, so nothing else would ever write it down; the class has paid for it all the same."""
    klass = make_class(1)
    sandbox.lose_reply("RunInstances", times=10)
    klass.up()
    sandbox.faults.clear()
    (lost,) = (i["InstanceId"] for i in sandbox.instances("pending", "running"))
    sandbox.advance(1800)
    ec2.terminate_instances(InstanceIds=[lost])
    sandbox.advance(60)

    klass.up()

    ledger = klass.accounts().account(klass.wish().everyone[0].account).context.ledger
    facts = [f for f in ledger.facts() if f.subject == lost]
    assert {FactKind.LAUNCHED, FactKind.ADDRESS} <= {f.kind for f in facts}
    assert ["g4dn.xlarge"] == [
        f.details["instance_type"] for f in facts if f.kind is FactKind.LAUNCHED
    ]


def test_a_launch_that_never_reached_aws_is_made_with_its_own_token(make_class, sandbox):
    """The request was lost on the way out: asked again, it makes the one."""
    klass = make_class(2)
    sandbox.drop_request("RunInstances", times=None)
    klass.up()
    sandbox.faults.clear()

    second = klass.up()

    assert ["adopted", "adopted"] == second.results()
    assert klass.names() == klass.live()


@pytest.mark.parametrize("code", ["ExpiredToken", "UnauthorizedOperation"])
def test_an_open_launch_stays_open_while_nobody_may_ask(make_class, sandbox, code):
    """The answer was lost and the key expired: AWS says nothing of the launch, so it is still the one that the next command settles."""
    klass = make_class(1)
    sandbox.drop_request("RunInstances", times=None)
    klass.up()
    sandbox.faults.clear()
    sandbox.refuse("RunInstances", code, status=403, times=None)
    between, calls = klass.up(), klass.operations().count("RunInstances")
    journal = klass.accounts().account(klass.wish().seats[0].account).context.journal
    left = journal.read().open_intents
    sandbox.faults.clear()

    last = klass.up()

    assert (["failed"], ["adopted"]) == (between.results(), last.results())
    assert [last.outcomes[0].instance.token] == [intent.token for intent in left]
    assert calls + 1 == klass.operations().count("RunInstances")
    assert klass.names() == klass.live()


def test_a_launch_asked_for_again_outside_of_today_s_plan_is_in_the_books(make_class, sandbox):
    """The lab's type was changed meanwhile: what was asked for before is adopted as it is, and somebody pays for it."""
    klass = make_class(1)
    sandbox.drop_request("RunInstances", times=None)
    klass.up()
    sandbox.faults.clear()
    klass.lab = replace(klass.lab, instance_type="g5.xlarge")

    run = klass.up()

    (made,) = sandbox.instances("pending", "running")
    ledger = klass.accounts().account(klass.wish().everyone[0].account).context.ledger
    facts = [f for f in ledger.facts(FactKind.LAUNCHED) if f.subject == made["InstanceId"]]
    assert ["adopted"] == run.results()
    assert ["g4dn.xlarge"] == [f.details["instance_type"] for f in facts]


def test_an_adopted_instance_that_is_lost_at_its_start_is_a_launch_the_next_time(
    make_class, sandbox
):
    """What is launched in its place was not found: its start is by the clock of AWS, and the outcome says so."""
    klass = make_class(1)
    sandbox.drop_request("RunInstances", times=None)
    klass.up()
    sandbox.faults.clear()
    sandbox.fail_boot("Server.InternalError", times=1)

    run = klass.up()

    assert ["launched"] == run.results()
    assert 1 == len([e for e in run.events if isinstance(e, Lost)])


def test_a_students_instance_that_aws_took_back_is_launched_again(make_class, sandbox):
    """Ten minutes into the lab; the teacher runs it again for whoever fell out."""
    klass = make_class(2)
    first = klass.up()
    sandbox.interrupt(first.outcomes[0].instance.id, in_seconds=1)
    sandbox.advance(seconds=200)

    second = klass.up()

    assert ["launched", "kept"] == second.results()
    assert klass.names() == klass.live()


def test_two_terminals_cannot_launch_one_lab_at_once(make_class):
    """Two windows on one laptop; the second is told instead of paying twice."""
    klass = make_class(1)

    with (
        up.locked(klass.accounts(), klass.lab),
        pytest.raises(Refused, match="another gpulab is launching w1 right now"),
    ):
        klass.up()


def test_another_computer_sees_by_the_tags_who_is_up(make_class):
    """The second assistant has no journal; the tags are the truth."""
    klass, other = make_class(2), make_class(2)
    klass.up()
    klass.sandbox.advance(seconds=60)

    second = other.up()

    assert ["kept", "kept"] == second.results()


def test_an_interrupt_begins_no_further_call_and_loses_nothing(make_class):
    """Ctrl-C after the first students: those are written down, the next run serves the rest."""
    klass = make_class(4)
    accounts, wish = klass.accounts(), klass.wish()
    with up.locked(accounts, wish.lab):
        steps = up.up(accounts, up.plan(accounts, wish, may_settle=True))
        next(e for e in steps if isinstance(e, Requested))
        steps.close()

    second = klass.up()

    assert klass.names() == klass.live()
    assert "failed" not in second.results()


def _of_course(sandbox, course_id):
    found = sandbox.instances("pending", "running")
    tags = [{t["Key"]: t["Value"] for t in i["Tags"]} for i in found]
    return sorted(t["gpulab:name"] for t in tags if t.get("gpulab:course") == course_id)


def test_a_clock_that_was_set_back_holds_no_class_up(make_class, sandbox, monkeypatch):
    """A laptop that woke with the wrong time and asks for what EC2 does not show yet would wait for hours, without a word."""
    klass = make_class(1)
    klass.up()
    monkeypatch.setattr(settling.instances, "read_many", lambda *_: [])
    begun = sandbox.now()
    accounts = klass.accounts(now=lambda: sandbox.now() - timedelta(hours=3))
    account = accounts.account(klass.wish().everyone[0].account)

    settled = settling.settle(account, klass.names(), [], may_write=False)

    assert ((), ()) == (settled.unlisted, settled.open_intents)
    assert sandbox.now() - begun < timedelta(minutes=1)
