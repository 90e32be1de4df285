"""What the ledger learns of instances that EC2 has forgotten before anybody looked."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gpulab.launch.money.rebuilding import rebuild
from gpulab.model.fact import FactKind
from gpulab.model.market import Market

PLANNED = "gone; its end is not known, its planned end is taken"


@pytest.fixture
def taken_back(student):
    """A student whose spot instance AWS took back half an hour after its launch, planned for ten."""
    student.up(duration=timedelta(hours=10))
    student.sandbox.advance(1800)
    student.sandbox.interrupt(student.live()[0], in_seconds=1)
    student.sandbox.advance(60)
    return student


def ends(student):
    return [
        (fact.at, fact.details.get("by"), fact.details["reason"])
        for fact in student.context.ledger.facts(FactKind.ENDED)
    ]


def test_a_spot_request_tells_the_end_that_its_instance_no_longer_does(taken_back):
    """EC2 forgets an instance an hour after its end, and its request three hours later; ten hours of a plan are no bill."""
    ended_at = taken_back.sandbox.now() - timedelta(seconds=59)
    taken_back.sandbox.advance(2 * 3600)

    rebuilt = rebuild(taken_back.context, ("us-east-1",))

    assert [(ended_at, "aws", "instance-terminated-no-capacity")] == ends(taken_back)
    assert () == rebuilt.unknown


def test_what_nobody_remembers_counts_to_its_planned_end(taken_back):
    """Too much is found out at the first look at the bill; too little is found out when the credit is gone."""
    begun_at = taken_back.context.ledger.facts(FactKind.LAUNCHED)[0].at
    taken_back.sandbox.advance(15 * 3600)

    rebuilt = rebuild(taken_back.context, ("us-east-1",))

    ((at, by, reason),) = ends(taken_back)
    assert (timedelta(hours=10), None, PLANNED) == (
        timedelta(minutes=round((at - begun_at).total_seconds() / 60)),
        by,
        reason,
    )
    assert [True] == ["its planned end is taken" in text for text in rebuilt.unknown]


def test_who_may_not_read_requests_still_closes_the_books(taken_back):
    """A course account may allow less than we ask for; then the planned end is all there is."""
    taken_back.sandbox.advance(2 * 3600)
    taken_back.sandbox.deny("ec2:DescribeSpotInstanceRequests")

    rebuild(taken_back.context, ("us-east-1",))

    assert [PLANNED] == [reason for _, _, reason in ends(taken_back)]


def test_an_instance_on_demand_has_no_request_to_ask(student, ec2):
    """One call less, and no error for an id that AWS does not know."""
    student.up(markets=(Market.ON_DEMAND,), duration=timedelta(hours=2))
    ec2.terminate_instances(InstanceIds=student.live())
    student.sandbox.advance(3 * 3600)

    rebuild(student.context, ("us-east-1",))

    assert "DescribeSpotInstanceRequests" not in student.operations()
    assert [PLANNED] == [reason for _, _, reason in ends(student)]
