"""The end of one instance, and `gpulab stop --all`: the end of the day for everything of mine."""

from __future__ import annotations

import io

import pytest
from click.testing import CliRunner
from tests.aws.launch.conftest import Student

from gpulab.cli.context import Context
from gpulab.cli.stop import command
from gpulab.errors import NotAllowed, NotFound, SomeFailed
from gpulab.launch.events import Ended
from gpulab.launch.running import stop
from gpulab.model.fact import FactKind
from gpulab.view.console import Console


def at_the_keyboard(student: Student) -> Context:
    """The command line on a student's computer; words go nowhere."""
    console = Console(io.StringIO(), io.StringIO(), False, False, monotonic=lambda: 0.0)
    context = Context(environment={}, console=console)
    vars(context)["launch"] = student.context
    return context


def test_one_that_cannot_be_ended_does_not_keep_the_others_running(sandbox, student):
    """Whoever types it and closes the laptop would pay for all that was left up behind the first failure."""
    student.up("gan")
    kept_up = student.up("week4").instance.id
    sandbox.advance(seconds=60)
    sandbox.refuse("TerminateInstances", "UnauthorizedOperation", contains=kept_up)
    obj = at_the_keyboard(student)

    result = CliRunner().invoke(command, ["--all", "--yes", "--no-save"], obj=obj)

    assert [kept_up] == student.live()
    assert SomeFailed is type(result.exception)
    assert result.exception.message.startswith(f"1 of 2 were not ended: could not end {kept_up}")


def test_an_end_that_nobody_may_look_at_is_in_the_books(sandbox, student):
    """AWS has taken the termination; whoever cannot look afterwards would be charged until the planned end, hours later."""
    instance = student.up("week4").instance
    sandbox.advance(seconds=60)
    asked_at = sandbox.now()
    sandbox.refuse("DescribeInstances", "UnauthorizedOperation")

    with pytest.raises(NotAllowed):
        list(stop.stop(student.context, instance, save=False))

    ends = student.context.ledger.facts(FactKind.ENDED)
    assert [(instance.id, "stop")] == [(one.subject, one.details["reason"]) for one in ends]
    assert 0 <= (ends[0].at - asked_at).total_seconds() < 5


def test_an_instance_that_aws_shows_is_not_ended_because_it_was_not_found(sandbox, student):
    """EC2's parts do not know everything at the same time: written down as ended, it would run on at nobody's charge."""
    instance = student.up("week4").instance
    sandbox.advance(seconds=60)
    sandbox.refuse("TerminateInstances", "InvalidInstanceID.NotFound")

    with pytest.raises(NotFound, match="runs on"):
        list(stop.stop(student.context, instance, save=False))

    assert () == tuple(student.context.ledger.facts(FactKind.ENDED))
    assert [instance.id] == student.live()


def test_an_instance_that_aws_has_forgotten_has_ended(sandbox, student, judge):
    """Whoever stops what ended hours ago is told that it has ended, and the books know it."""
    instance = student.up("week4").instance
    sandbox.interrupt(instance.id, in_seconds=1)
    sandbox.advance(seconds=7200)

    last = list(stop.stop(student.context, instance, save=False))[-1]

    judge.forbidden.clear()  # nobody knows the tags any more that allow it
    assert isinstance(last, Ended)
    assert [instance.id] == [one.subject for one in student.context.ledger.facts(FactKind.ENDED)]
