"""Since when the instances of a class are billed, as far as looks can tell: a pending instance costs nothing yet."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gpulab.fleets import up
from gpulab.fleets.events import Polled
from gpulab.model.fact import FactKind

BOOT = timedelta(seconds=50)


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def klass(make_class, sandbox, monkeypatch):
    """One student whose instance is pending for most of a minute."""
    delays = replace(sandbox.rules.delays, boot=BOOT)
    monkeypatch.setattr(sandbox, "rules", replace(sandbox.rules, delays=delays))
    return make_class(1)


def pending_for(klass):
    """How long the class's instance was not billed, as the ledger says."""
    (seat,) = klass.wish().everyone
    facts = klass.accounts().account(seat.account).context.ledger.facts()
    at = {one.kind: one.at for one in facts}
    return at[FactKind.STARTED] - at[FactKind.LAUNCHED]


def test_an_instance_is_billed_from_when_a_look_shows_that_it_runs(klass):
    """Of three hundred instances in a full zone some are pending for minutes, and nobody pays for those."""
    klass.up()

    assert BOOT <= pending_for(klass) <= BOOT + timedelta(seconds=10)


def test_an_instance_that_a_killed_command_launched_is_billed_from_the_same_moment(
    klass, monkeypatch
):
    """The laptop died before the answer came; who types the command again is not billed for the wait."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(klass.sandbox, "handle", dying(klass.sandbox.handle, after="RunInstances"))
        klass.up()

    run = klass.up()

    assert ["adopted"] == run.results()
    assert BOOT <= pending_for(klass) <= BOOT + timedelta(seconds=10)


def dying(handle, *, after):
    """The process is killed once that call has taken effect; the dead make no further one."""
    is_dead = []

    def call_or_die(call, forward):
        answer = None if is_dead else handle(call, forward)
        if is_dead or call.operation == after:
            is_dead.append(True)
            raise Killed
        return answer

    return call_or_die


def test_where_no_look_is_answered_it_is_billed_from_when_one_last_showed_it_pending(klass):
    """It may have run since then: an estimate that is too low comes as a surprise on the card."""
    accounts, wish, sandbox = klass.accounts(), klass.wish(), klass.sandbox
    looks = []
    with up.locked(accounts, wish.lab):
        for event in up.up(accounts, up.plan(accounts, wish, may_settle=True)):
            looks += [event.at] if isinstance(event, Polled) else []
            if len(looks) == 3:
                sandbox.refuse("DescribeInstances", "InternalError", times=None)
            if len(looks) > 3 and looks[-1] - looks[2] > BOOT:
                sandbox.faults.clear()

    made = sandbox.instances("running")[0]["LaunchTime"]
    assert looks[-1] - looks[2] > BOOT
    assert abs(pending_for(klass) - (looks[2] - made)) <= timedelta(seconds=2)
