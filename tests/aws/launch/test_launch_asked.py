"""What the ledger knows of each attempt: written before EC2 is asked, once however often it is asked, and never a cost by itself."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gpulab.aws import instances as ec2_instances
from gpulab.errors import StoreError
from gpulab.launch.money.rebuilding import rebuild
from gpulab.launch.protocol import asking
from gpulab.launch.running import stop
from gpulab.model.fact import FactKind
from gpulab.model.timeline import ChargeKind
from gpulab.spending.charging import cost_of
from gpulab.spending.exact import Usd
from gpulab.spending.facts import timeline_of


class Killed(BaseException):
    """The process is gone: nothing after this runs."""


def reading_of(student):
    return timeline_of(student.context.ledger.facts())


def test_each_place_that_was_asked_is_in_the_ledger_and_one_of_them_took_it(sandbox, student):
    """`asked 2 times, 1 taken` tells a full market from a broken tool."""
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", times=1)

    run = student.up()

    asked = reading_of(student).asked
    calls = [c.params for c in sandbox.calls if c.operation == "RunInstances"]
    assert [c["ClientToken"] for c in calls] == [one.token for one in asked]
    assert [c["Placement"]["AvailabilityZone"] for c in calls] == [one.zone for one in asked]
    assert ["", run.instance.id] == [one.instance_id for one in asked]


def test_an_attempt_says_where_what_and_at_most_for_how_much(student):
    """A cap of one's own is the worst case; without one it is the on-demand price, as EC2 has it."""
    student.up("free")
    student.up("capped", max_usd_per_hour=Decimal("0.40"))

    free, capped = (f.details for f in student.context.ledger.facts(FactKind.INTENT))

    assert ("0.526", "0.4") == tuple(
        one["at_most_usd_per_hour"].rstrip("0") for one in (free, capped)
    )
    assert ("launch0001", "g4dn.xlarge", "spot", "free") == tuple(
        free[key] for key in ("launch_id", "instance_type", "market", "name")
    )


def test_an_attempt_is_written_before_the_call_and_once_though_asked_again(student, monkeypatch):
    """The laptop dies in the call; the next command asks with the same token, which is the same attempt."""
    sent = []

    def killed(*args):
        sent.append(args)
        raise Killed

    monkeypatch.setattr(ec2_instances, "run", killed)
    with pytest.raises(Killed):
        student.up()
    before = student.context.ledger.facts(FactKind.INTENT, FactKind.LAUNCHED)
    monkeypatch.undo()

    run = student.again().up()

    kinds = [fact.kind for fact in before]
    assert ([FactKind.INTENT], 1) == (kinds, len(sent))
    assert before == student.context.ledger.facts(FactKind.INTENT)
    assert [run.instance.id] == [one.instance_id for one in reading_of(student).asked]


def test_what_aws_never_launched_costs_nothing_and_is_asked_of_nobody(sandbox, student):
    """Every place was full: the books stay at zero, and no later look at the account is needed for them."""
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", times=50)
    student.up()

    reading = reading_of(student)

    assert reading.asked
    assert {""} == {one.instance_id for one in reading.asked}
    assert ((), ()) == (reading.timeline.instances, reading.problems)


def test_an_attempt_that_the_ledger_cannot_take_is_told_and_made(student, monkeypatch):
    """The journal has it, which is what keeps a launch from being made twice."""

    def refuse(*_args):
        raise StoreError("could not write the ledger")

    monkeypatch.setattr(asking, "record_intent", refuse)

    run = student.up()

    assert [run.instance.id] == student.live()
    assert "Warned" in run.told()
    assert run.instance.id in reading_of(student).launches


def test_the_address_costs_what_the_simulated_bill_says(sandbox, student):
    """From running to the end, once, though launch and account both tell of it."""
    instance = student.up().instance
    sandbox.advance(3600)
    list(stop.stop(student.context, instance, save=False))
    rebuild(student.context, ("us-east-1",))
    costs = cost_of(reading_of(student).timeline, as_of=sandbox.now())
    ours = Usd.of(c for c in costs.charges if c.kind is ChargeKind.IPV4).rounded()
    theirs = sum(line.usd for line in sandbox.bill().lines if line.kind == "ipv4")
    assert 1 == len(student.context.ledger.facts(FactKind.ADDRESS))
    assert abs(ours - theirs) < theirs / 1000
