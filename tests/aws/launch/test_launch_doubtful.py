"""An error says something of a launch only where the launch itself was refused: whatever else AWS refuses must not lead to a second one."""

from __future__ import annotations

import pytest

from gpulab.errors import Ambiguous, AwsError, CredentialsInvalid, GpulabError, NotAllowed
from gpulab.launch import up
from gpulab.launch.events import Launched, PlaceRefused, Repeating
from gpulab.launch.offers.places import full_places, never_places
from gpulab.store.journal import Journal


@pytest.mark.parametrize(
    "code",
    [
        "InsufficientInstanceCapacity",
        "Unsupported",
        "SpotMaxPriceTooLow",
        "MaxSpotInstanceCountExceeded",
        "InvalidAMIID.Unavailable",
        "OptInRequired",
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
        "IdempotentInstanceTerminated",
        "IdempotentParameterMismatch",
        "AccessDenied",
        "ExpiredToken",
    ],
)
def test_a_look_that_is_refused_after_the_launch_starts_no_other_one(sandbox, student, code):
    """The instance runs and costs; taking the refused look for a refused launch would buy another one in the next zone."""

    def agreed(_question):
        sandbox.refuse("DescribeInstances", code, times=None)
        return True

    first = student.up(confirm=agreed)
    live = student.live()
    sandbox.faults.clear()

    second = student.again().up()

    assert (1, []) == (len(first.of(Launched)), first.of(PlaceRefused))
    assert f"{live[0]} was launched and costs" in first.error.message
    assert "he same command again goes on with it" in first.error.hint
    assert code == first.error.code
    assert live == student.live() == [second.instance.id]


@pytest.mark.parametrize("code", ["InsufficientCapacity", "Unsupported", "SpotMaxPriceTooLow"])
def test_a_refused_setup_says_nothing_of_the_place(sandbox, student, code):
    """A group that cannot be made is no full zone: remembered as one, the next launches would pass by the cheapest zone for nothing."""
    sandbox.refuse("CreateSecurityGroup", code, times=None)

    run = student.up()

    assert (AwsError, code) == (type(run.error), run.error.code)
    assert ({}, frozenset()) == (full_places(student.context), never_places(student.context))
    assert 0 == student.operations().count("RunInstances")


@pytest.mark.parametrize("code", ["ExpiredToken", "UnauthorizedOperation"])
def test_a_repetition_that_may_not_be_made_says_nothing_of_the_first_call(sandbox, student, code):
    """The first answer was lost, its instance runs: AWS refused the second for who asked, before it looked at the token."""
    sandbox.lose_reply("RunInstances")
    error = _up_and_refused_at_the_repetition(sandbox, student, code)

    left = Journal(student.context.folder.journal).read().open_intents
    sandbox.faults.clear()
    second = student.again().up()

    assert code == error.code
    assert [student.live()[0]] == student.live() == [second.instance.id]
    assert 1 == len(left)


def test_an_open_launch_stays_open_while_the_credentials_have_expired(sandbox, student):
    """Two commands later the launch is still the one that was begun, and is asked for with its own token."""
    sandbox.drop_request("RunInstances", times=None)
    student.up()
    sandbox.faults.clear()
    sandbox.refuse("RunInstances", "ExpiredToken", times=None)
    between = student.again().up()
    left = Journal(student.context.folder.journal).read().open_intents
    sandbox.faults.clear()

    last = student.again().up()

    assert isinstance(between.error, CredentialsInvalid)
    assert [last.instance.token] == [intent.token for intent in left]
    assert [last.instance.id] == student.live()


def test_a_refusal_of_a_first_call_closes_the_launch(sandbox, student):
    """Nothing was asked before, so nothing can have been made: the next command plans anew."""
    sandbox.refuse("RunInstances", "UnauthorizedOperation", times=1)

    run = student.up()

    assert isinstance(run.error, NotAllowed)
    assert [] == student.live()
    assert () == tuple(Journal(student.context.folder.journal).read().open_intents)


def test_a_token_of_another_call_whose_instance_cannot_be_looked_up_stays_open(sandbox, student):
    """AWS says that the token has made something: whatever the look meets, no other place is asked."""
    sandbox.refuse("RunInstances", "IdempotentParameterMismatch", times=1)

    def agreed(_question):
        sandbox.refuse("DescribeInstances", "InsufficientInstanceCapacity", times=None)
        return True

    run = student.up(confirm=agreed)

    assert isinstance(run.error, Ambiguous)
    assert 1 == student.operations().count("RunInstances")
    assert 1 == len(Journal(student.context.folder.journal).read().open_intents)


def _up_and_refused_at_the_repetition(sandbox, student, code):
    steps = up.until_running(student.context, student.request(), confirm=lambda question: True)
    try:
        for event in steps:
            if isinstance(event, Repeating):
                sandbox.refuse("RunInstances", code, times=None)
    except GpulabError as error:
        return error
    raise AssertionError("the repetition was not refused")
