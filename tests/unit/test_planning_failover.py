"""What each error of a launch leaves to do. The table is `cases/failover.csv`."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from gpulab import errors
from gpulab.model.market import InstanceType, Market, Offer, Place
from gpulab.planning.failover import (
    Failure,
    Next,
    conclusion,
    remaining,
    what_next,
    zones_that_would_do,
)

CASES = list(csv.DictReader((Path(__file__).parent / "cases/failover.csv").open(encoding="utf-8")))


def an_offer(
    zone: str = "us-east-1a", kind: str = "g4dn.xlarge", market: Market = Market.SPOT
) -> Offer:
    instance_type = InstanceType(kind, 4, Decimal(16), "T4", 1, Decimal(16), "G")
    place = Place(zone[:-1], zone, kind, market)
    return Offer(
        place, instance_type, Decimal("0.21"), Decimal("0.526"), datetime(2026, 11, 23, tzinfo=UTC)
    )


OFFERS = {
    "east-a": an_offer(),
    "east-b": an_offer("us-east-1b"),
    "east-a2": an_offer("us-east-1a", "g4dn.2xlarge"),
    "west-a": an_offer("us-west-2a"),
}


@pytest.mark.parametrize("case", CASES, ids=[c["code"] for c in CASES])
def test_each_error_leaves_what_the_table_says(case):
    """Trying elsewhere after anything but "this place is full" launches twice or hides the cause."""
    error = getattr(errors, case["error"])("no", code=case["code"])

    left = remaining(list(OFFERS.values()), Failure(OFFERS["east-a"], error))

    assert (Next[case["next"]], [OFFERS[n] for n in case["what is left"].split()]) == (
        what_next(error),
        list(left),
    )


def test_without_the_spot_role_only_on_demand_is_left():
    """The role is the account's: no zone and no region has spot without it."""
    spot, on_demand = an_offer(), an_offer("us-east-1b", market=Market.ON_DEMAND)
    error = errors.AccountNotReady(
        "no role", code="AuthFailure.ServiceLinkedRoleCreationNotPermitted"
    )

    left = remaining([spot, an_offer("us-west-2a"), on_demand], Failure(spot, error))

    assert (on_demand,) == left


def test_zones_named_by_aws_are_tried_first():
    """AWS knows which of its zones have one; the student waits for one attempt less."""
    full, b, c = an_offer("us-east-1a"), an_offer("us-east-1b"), an_offer("us-east-1c")
    words = "You can currently get g4dn.xlarge capacity by not specifying an Availability Zone in your request or choosing us-east-1c."

    left = remaining([full, b, c], Failure(full, errors.NoCapacity("full", detail=words)))

    assert (c, b) == left


@pytest.mark.parametrize(
    ("words", "zones"),
    [
        (
            "... or choosing us-east-1b, us-east-1c, us-east-1d.",
            ("us-east-1b", "us-east-1c", "us-east-1d"),
        ),
        ("... request or choosing ap-southeast-2a", ("ap-southeast-2a",)),
        ("choosing your words", ()),
        ("", ()),
    ],
)
def test_zones_are_read_from_the_sentences_aws_writes(words, zones):
    """The sentences are AWS's (public issues quote them); other words are no zones."""
    assert zones == zones_that_would_do(words)


def test_the_conclusion_names_other_causes_before_full_places():
    """A missing permission told as lack of capacity sends a student waiting for nothing."""
    failures = [
        Failure(an_offer("us-east-1a"), errors.NoCapacity("full")),
        Failure(
            an_offer("us-east-1b"),
            errors.NotAllowed(
                "not allowed to ec2:RunInstances",
                hint="Ask your teacher",
                code="UnauthorizedOperation",
            ),
        ),
    ]

    error = conclusion(failures)

    assert errors.NotAllowed is type(error)
    assert (
        "not allowed to ec2:RunInstances; no capacity at g4dn.xlarge in us-east-1a" == error.message
    )
    assert ("Ask your teacher", "UnauthorizedOperation") == (error.hint, error.code)


def test_full_everywhere_lists_the_places_once_and_offers_on_demand():
    """Ten refusals are one sentence, and the way out is a flag."""
    failures = [
        Failure(
            an_offer(zone, kind), errors.NoCapacity("full", code="InsufficientInstanceCapacity")
        )
        for kind in ("g4dn.xlarge", "g4dn.2xlarge")
        for zone in ("us-east-1a", "us-east-1b")
    ]

    error = conclusion(failures)

    assert (
        "no place had an instance free: g4dn.xlarge in us-east-1a, us-east-1b; g4dn.2xlarge in us-east-1a, us-east-1b"
        == error.message
    )
    assert (
        "Try again in a few minutes, in another region with `--region`, or at a fixed price with `--on-demand`"
        == error.hint
    )


def test_a_quota_that_is_low_in_every_region_is_one_cause_with_one_request():
    """Three pasted requests and three equal sentences hide the one thing to do: raise it where one wants to work."""
    failures = [
        Failure(
            an_offer(zone),
            errors.QuotaTooLow(f"too low in {zone}", hint=f"raise it in {zone}", code="Max"),
        )
        for zone in ("us-east-1a", "us-east-2b", "us-west-2a")
    ]

    error = conclusion(failures)

    assert "too low in us-east-1a (the same in us-east-2, us-west-2)" == error.message
    assert "raise it in us-east-1a" == error.hint


def test_a_type_that_no_zone_sells_is_told_as_that_and_not_as_full():
    """Whoever reads "none free" tries again for hours."""
    unsold = errors.NotOffered("could not launch", code="Unsupported")

    said = conclusion([Failure(OFFERS["east-a"], unsold), Failure(OFFERS["east-b"], unsold)])

    assert errors.NotOffered is type(said)
    assert "no zone sells it: g4dn.xlarge in us-east-1a, us-east-1b" == said.message
