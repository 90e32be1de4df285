"""What became of a launch whose answer was lost, decided without any cloud: one launch and a class go by the same rules."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from gpulab.errors import NoCapacity
from gpulab.launch.protocol import outcome
from gpulab.model.market import Market
from gpulab.model.timeline import EndedBy
from gpulab.store.journal import Intent

_spec = importlib.util.spec_from_file_location(
    "fleet_builders", Path(__file__).with_name("fleet_builders.py")
)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

INSTANCE = build.an_instance("w1-a", launch_id="l1")
ELSEWHERE = replace(INSTANCE, id="i-2", place=replace(INSTANCE.place, zone="us-east-1f"))
INTENT = Intent(
    launch_id="l1",
    attempt=2,
    token="l1-2",
    name="w1-a",
    region="us-east-1",
    parameters={
        "Placement": {"AvailabilityZone": INSTANCE.place.zone},
        "InstanceType": INSTANCE.place.instance_type,
        "InstanceMarketOptions": {"MarketType": "spot"},
    },
    user_data=b"",
    at=build.NOW,
)


def test_only_the_instance_of_this_attempt_counts():
    """The first attempt of the launch was at another place and came to nothing; its remains must not stand for the second."""
    another = replace(INSTANCE, id="i-3", launch_id="l2")

    found = outcome.made_by(INTENT, [another, ELSEWHERE, INSTANCE])

    assert INSTANCE == found
    assert None is outcome.made_by(INTENT, [another, ELSEWHERE])


@pytest.mark.parametrize(
    "dead",
    [
        replace(INSTANCE, id="i-4", place=replace(INSTANCE.place, market=Market.ON_DEMAND)),
        replace(INSTANCE, id="i-4", token="l1-1"),
    ],
    ids=["the other market", "an earlier token"],
)
def test_what_another_attempt_left_in_the_same_zone_does_not_count(dead):
    """A spot instance taken back at its start, and an on-demand one bought after it: settled by the dead one, a third is launched."""
    assert None is outcome.made_by(INTENT, [dead])
    assert INSTANCE == outcome.made_by(INTENT, [dead, INSTANCE])
    mine = replace(INSTANCE, token=INTENT.token)
    assert mine == outcome.made_by(INTENT, [dead, mine])


@pytest.mark.parametrize(
    ("made", "minutes", "is_open"),
    [(None, 0, True), (None, 9.9, True), (None, 10, False), (INSTANCE, 0, False)],
)
def test_nothing_shown_proves_nothing_within_ten_minutes(made, minutes, is_open):
    """EC2 shows what it has made within minutes, not at once: concluding sooner would launch a second one."""
    now = build.NOW + timedelta(minutes=minutes)

    assert is_open is outcome.is_open(INTENT, made, now=now)


def test_the_journal_is_told_what_was_found():
    """An ended instance was made all the same: its token must not be used for another."""
    assert ("launched", INSTANCE.id) == outcome.result_of(INSTANCE)
    assert ("never-took-effect", "") == outcome.result_of(None)


def test_an_instance_that_ends_while_it_starts_ends_in_the_class_that_says_what_to_do():
    """Spot capacity that vanishes in the first minute is lack of capacity, not an unknown failure."""
    ended = replace(INSTANCE, state_reason="Server.SpotInstanceTermination")

    error = outcome.ended_early(ended)

    assert NoCapacity is type(error)
    assert "launch g4dn.xlarge in us-east-1a" in error.message
    assert EndedBy.AWS is outcome.ended_by(ended)


def test_an_instance_that_somebody_ends_while_it_starts_is_no_fault_of_gpulab():
    """`stop` in another terminal came between: the report must not count an interruption, nor the hint ask for a fault in gpulab."""
    ended = replace(INSTANCE, state_reason="Client.UserInitiatedShutdown")

    error = outcome.ended_early(ended)

    assert f"{INSTANCE.id} was ended while it was starting" in error.message
    assert "Another command ended it" in error.hint
    assert EndedBy.USER is outcome.ended_by(ended)
