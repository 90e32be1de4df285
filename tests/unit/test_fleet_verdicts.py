"""What one look says about an instance of a class that AWS has taken: who is waited for, and who is not."""

from __future__ import annotations

import importlib.util
from datetime import timedelta
from pathlib import Path

import pytest

from gpulab.errors import AwsError, Throttled
from gpulab.fleets.verdicts import Verdict, judge, running_since
from gpulab.model.instance import State

_spec = importlib.util.spec_from_file_location(
    "fleet_builders", Path(__file__).with_name("fleet_builders.py")
)
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

INSTANCE = build.an_instance("w1-a", state=State.PENDING)


@pytest.mark.parametrize(
    ("state", "waited_s", "verdict"),
    [
        (State.PENDING, 10, Verdict.WAIT),
        (State.PENDING, 479, Verdict.WAIT),
        (State.PENDING, 480, Verdict.GIVEN_UP),
        (State.RUNNING, 900, Verdict.RUNS),
        (State.SHUTTING_DOWN, 10, Verdict.ENDED),
        (State.TERMINATED, 10, Verdict.ENDED),
        (None, 119, Verdict.WAIT),
        (None, 120, Verdict.GIVEN_UP),
    ],
)
def test_one_look_decides_by_what_it_shows_and_how_long_was_waited(state, waited_s, verdict):
    """EC2 lists an instance up to two minutes late, and no start takes eight: before that nobody is given up, after it nobody waits."""
    seen = {} if state is None else {INSTANCE.id: build.an_instance("w1-a", state=state)}

    judged = judge(INSTANCE, seen, waited=timedelta(seconds=waited_s))

    assert verdict is judged.verdict
    assert state == (judged.seen.state if judged.seen else None)


def test_who_is_given_up_reads_why_and_what_to_do():
    """What is pending for too long, what EC2 does not show and what could not be asked are three different sentences."""
    late, unread = timedelta(minutes=9), Throttled("EC2 is busy", hint="Wait")

    pending = judge(INSTANCE, {INSTANCE.id: INSTANCE}, waited=late).error
    vanished = judge(INSTANCE, {}, waited=late).error

    assert isinstance(pending, AwsError)
    assert (f"{INSTANCE.id} is still pending after 8 min", "Run it again") == (
        pending.message,
        pending.hint,
    )
    assert (f"EC2 does not show {INSTANCE.id} any more", "Run it again") == (
        vanished.message,
        vanished.hint,
    )
    assert unread is judge(INSTANCE, unread, waited=late).error


def test_a_look_that_failed_is_no_word_about_the_instance_at_first():
    """A throttled minute must not fail thirty seats whose instances are on their way."""
    judged = judge(INSTANCE, Throttled("EC2 is busy"), waited=timedelta(seconds=60))

    assert (Verdict.WAIT, None, None) == (judged.verdict, judged.seen, judged.error)


@pytest.mark.parametrize(
    ("pending_after_s", "seen_after_s", "is_adopted", "runs_after_s"),
    [
        (None, 9, False, 9),
        (14, 19, False, 19),
        (None, 70, False, 0),
        (14, 90, False, 14),
        (14, 19, True, 19),
        (None, 9, True, 0),
    ],
)
def test_since_when_it_runs_is_never_later_than_it_may_have_begun(
    pending_after_s, seen_after_s, is_adopted, runs_after_s
):
    """Where AWS did not answer for a minute, or another command launched it, a minute of a whole class would be missing from the books."""
    asked = INSTANCE.launched_at
    pending_at = None if pending_after_s is None else asked + timedelta(seconds=pending_after_s)

    since = running_since(
        INSTANCE,
        asked_at=asked,
        pending_at=pending_at,
        now=asked + timedelta(seconds=seen_after_s),
        is_adopted=is_adopted,
    )

    assert asked + timedelta(seconds=runs_after_s) == since
