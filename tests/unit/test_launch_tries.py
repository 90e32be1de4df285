"""One launch on its way through its places, without any cloud: tokens, repairs once, and where it ends."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from gpulab.errors import (
    Ambiguous,
    NoCapacity,
    NotAllowed,
    QuotaTooLow,
    SetupMissing,
    WrongUsage,
)
from gpulab.launch.protocol.tries import Tries
from gpulab.planning.failover import Next
from gpulab.planning.quotas import with_request

_spec = importlib.util.spec_from_file_location(
    "fleet_builders", Path(__file__).with_name("fleet_builders.py")
)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

A, B, WEST = build.offer(), build.offer("us-east-1b"), build.offer("us-west-2a")
FULL = NoCapacity("no capacity in us-east-1a", code="InsufficientInstanceCapacity")
RENEWED = NoCapacity("ended", code="IdempotentInstanceTerminated")


def some_tries(*repairs: bool) -> Tries:
    answers = iter(repairs)
    return Tries("l1", may_repair=lambda region: next(answers, False))


def test_each_try_has_a_token_of_its_own_also_at_the_same_place():
    """AWS counts tokens by zone: one that is used twice for two places would launch twice or nothing."""
    tries = some_tries()

    tokens = [tries.next_at(offer).token for offer in (A, A, B)]

    assert ["l1-1", "l1-2", "l1-3"] == tokens


def test_a_full_place_is_left_out_and_remembered():
    """The commonest refusal of all."""
    tries = some_tries()

    left = tries.after(FULL, A, [A, B, WEST])

    assert ((B, WEST), Next.OTHER_ZONE, False) == (left.offers, left.then, left.is_repeat)
    assert [(A, FULL)] == [(f.offer, f.error) for f in tries.failures]


def test_a_place_takes_a_new_token_once():
    """The token's instance has ended; a second such answer is no accident, and a loop would cost by the round."""
    tries = some_tries()

    first = tries.after(RENEWED, A, [A, B])

    assert ((A, B), True) == (first.offers, first.is_repeat)
    with pytest.raises(NoCapacity, match="ended"):
        tries.after(RENEWED, A, [A, B])
    assert () == tries.failures


def test_a_repair_is_for_who_may():
    """In a class the first seat repairs a region for all: the others must not each delete what it made."""
    missing = SetupMissing("the group is gone", code="InvalidGroup.NotFound")
    tries = some_tries(True, False)

    assert (A, B) == tries.after(missing, A, [A, B]).offers
    with pytest.raises(SetupMissing):
        tries.after(missing, A, [A, B])


@pytest.mark.parametrize("error", [Ambiguous("lost"), NotAllowed("no"), WrongUsage("what")])
def test_an_end_names_what_was_full_before(error):
    """A lost answer is never a reason for another place; what was tried before is said with it."""
    tries = some_tries()
    tries.after(FULL, A, [A, B])

    with pytest.raises(type(error)) as end:
        tries.after(error, B, [B])

    assert error.message in end.value.message
    assert "no capacity at g4dn.xlarge in us-east-1a" in end.value.message


def test_an_end_without_any_refusal_before_is_told_as_it_came():
    """Nothing is to be added to the one thing that went wrong."""
    error = NotAllowed("no", hint="ask")

    with pytest.raises(NotAllowed) as end:
        some_tries().after(error, A, [A])

    assert error is end.value


@pytest.mark.parametrize(
    ("known", "needed", "wanted"),
    [(None, 0, 4), (build.quota(8), 0, 12), (build.quota(8, 4), 40, 44), (build.quota(64), 12, 68)],
)
def test_a_refusal_for_vcpus_carries_a_request_that_helps(known, needed, wanted):
    """EC2 does not name the quota; a request for no more than the limit that has refused would be closed by AWS."""
    refusal = QuotaTooLow("no", code="MaxSpotInstanceCountExceeded", detail="Max spot")

    error = with_request(refusal, A, known=known, needed_vcpus=needed)

    assert f"--quota-code L-3819A6DF --desired-value {wanted} --region us-east-1`" in error.hint
    assert ("no", "MaxSpotInstanceCountExceeded", "Max spot") == (
        error.message,
        error.code,
        error.detail,
    )


def test_any_other_refusal_stays_as_it_is():
    """A limit on volumes is not raised by asking for vCPUs."""
    error = QuotaTooLow("no", code="VolumeLimitExceeded", hint="delete some")

    assert error is with_request(error, A)
