"""Finding an instance again for an open tunnel."""

from __future__ import annotations

from gpulab.launch.running import browser, instances, stop
from gpulab.remote.supervisor import Gone


def test_a_region_that_is_silent_for_a_moment_does_not_end_the_tunnel(sandbox, make_student):
    """On a bad network some calls fail; a tunnel that gave up for good would lose the student's tab over it."""
    student = make_student(regions=("us-east-1", "eu-north-1"))
    instance = student.up("week4").instance
    sandbox.advance(seconds=60)
    target = instances.target(student.context, instance)
    sandbox.refuse("DescribeInstances", "UnauthorizedOperation", region="us-east-1", times=1)

    found = browser._Finder(student.context, instance).refresh(target)

    assert found is None


def test_an_instance_that_was_ended_ends_its_tunnel(sandbox, student):
    """A tunnel to nothing would run on in the background for ever."""
    instance = student.up("week4").instance
    sandbox.advance(seconds=60)
    target = instances.target(student.context, instance)
    list(stop.stop(student.context, instance, save=False))

    found = browser._Finder(student.context, instance).refresh(target)

    assert Gone("it was ended (Client.UserInitiatedShutdown)", is_final=True) == found
