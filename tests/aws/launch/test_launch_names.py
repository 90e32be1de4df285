"""What a shell may complete after a look at AWS."""

import pytest
from tests.aws.launch.conftest import Student

from gpulab.errors import WrongUsage
from gpulab.launch.running import instances, stop
from gpulab.store.names import known_names


def test_a_look_at_aws_leaves_the_names_for_the_shell(student, sandbox):
    """Completion never waits for the network, so somebody has to write the names down."""
    student.up("week4")
    student.up("gan")
    sandbox.advance(5)

    instances.mine(student.context)

    assert ("gan", "week4") == known_names(student.context.folder.cache)


def refusal(student, name):
    with pytest.raises(WrongUsage) as error:
        instances.find(student.context, name)
    return error.value.message, error.value.hint


def test_a_name_that_aws_took_back_is_remembered(student, sandbox):
    """After an interruption "no instance is called week4" reads as if the work had never been."""
    instance = student.up("week4").instance
    student.up("other")
    (student.context.folder.work / "week4").mkdir(parents=True)
    sandbox.advance(60)
    sandbox.interrupt(instance.id)
    sandbox.advance(300)

    message, hint = refusal(student, "week4")

    kept = student.context.folder.work / "week4"
    assert message.startswith("week4 was taken back by AWS at 2026-11-16 ")
    assert f"Its work is kept in {kept}: `gpulab up week4` brings it back" == hint


def test_a_name_that_was_stopped_is_remembered_when_ec2_has_forgotten_it(student, sandbox):
    """The next morning `gpulab open` must lead back to yesterday's work, not to another name."""
    stopped = student.up("week4").instance
    list(stop.stop(student.context, stopped, save=False))
    sandbox.advance(7200)

    named, unnamed = refusal(student, "week4"), refusal(student, None)

    assert named[0].startswith("week4 ")
    assert "`gpulab up week4` starts it again; no kept work of it was found" == named[1]
    assert ("no instance is up; " + named[0], named[1]) == unnamed


def test_kept_work_that_nobody_could_look_for_is_not_said_to_be_missing(sandbox, tmp_path):
    """An outage of S3 in the hour before the hand-in: "no kept work was found" would be the fright of a term, and untrue."""
    student = Student.after_init(sandbox, tmp_path / "home")
    stopped = student.up("week4").instance
    list(stop.stop(student.context, stopped, save=False))
    sandbox.advance(7200)
    sandbox.refuse("ListObjectsV2", "InternalError", status=500)

    _, hint = refusal(student, "week4")

    assert "could not be looked up" in hint
    assert hint.endswith("`gpulab pull week4 --kept` looks again")
