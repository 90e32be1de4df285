"""`gpulab stop --all`: the end of the day for everything of mine."""

from __future__ import annotations

import io

from click.testing import CliRunner
from tests.aws.launch.conftest import Student

from gpulab.cli.context import Context
from gpulab.cli.stop import command
from gpulab.errors import SomeFailed
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
