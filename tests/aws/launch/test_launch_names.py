"""What a shell may complete after a look at AWS."""

from gpulab.launch.running import instances
from gpulab.store.names import known_names


def test_a_look_at_aws_leaves_the_names_for_the_shell(student, sandbox):
    """Completion never waits for the network, so somebody has to write the names down."""
    student.up("week4")
    student.up("gan")
    sandbox.advance(5)

    instances.mine(student.context)

    assert ("gan", "week4") == known_names(student.context.folder.cache)
