"""
What `gpulab doctor --policy --for COMMAND` prints, held by the simulated IAM, for the commands beyond a student's day.

A student's day is in `test_rights_enforced.py`.
"""

from __future__ import annotations

from decimal import Decimal

import pytest
from tests.aws.conftest import a_client
from tests.aws.fleets import instances_that_keep
from tests.aws.fleets.conftest import Klass
from tests.aws.launch.conftest import Student
from tests.aws.launch.test_launch_bake import baked, with_host
from tests.aws.security.test_rights_enforced import DAY

from gpulab.errors import WrongUsage
from gpulab.fleets import closing
from gpulab.launch.account import images
from gpulab.launch.running import instances, keep
from gpulab.launch.upkeep import guards
from gpulab.launch.upkeep.prepare import prepare
from gpulab.launch.upkeep.rights import least
from gpulab.model.guard import Principals
from gpulab.rights.policy import known_commands
from gpulab.store.config import Profile

ME = "arn:aws:iam::123456789012:user/student"
TEACHER = Profile(name="teacher", owner="0teacher0000")
DENIED = ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException")


@pytest.fixture
def klass(sandbox, tmp_path):
    """Two students in one account, which the teacher reaches by a profile."""
    return Klass(sandbox, tmp_path, 2)


def denied(sandbox, since):
    return [c.operation for c in list(sandbox.calls)[since:] if c.outcome in DENIED]


@pytest.mark.parametrize("commands", [["fleet", "init"], ["fleet", "init", "up", "ls"]])
def test_a_class_is_launched_found_and_closed_with_the_least_policy(klass, sandbox, commands):
    """Its instances, group and ends carry its students' owner ids: a policy for the teacher's own would launch nobody."""
    sandbox.restrict(ME, [least(TEACHER, commands=commands)])
    before = len(sandbox.calls)

    first, again = klass.up(), klass.up()

    assert (["launched"] * 2, ["kept"] * 2) == (first.results(), again.results())
    assert [] == denied(sandbox, before)

    sandbox.restrict(ME, [least(TEACHER, commands=["close"])])
    before = len(sandbox.calls)
    accounts, seats = klass.accounts(), klass.wish().everyone
    refs = list(dict.fromkeys(seat.account for seat in seats))
    ended = list(closing.end(accounts, closing.look(accounts, refs, seats), save=False))
    cleared = list(closing.clear(accounts, closing.look(accounts, refs, seats)))

    assert (2, []) == (len(ended), klass.live())
    assert [None] == [one.trouble for one in cleared]
    assert [] == denied(sandbox, before)


def test_the_least_policy_of_a_class_sets_up_no_account_of_its_own(klass, sandbox):
    """Least means that the rest is refused: without `init` nothing is kept in a bucket, and everybody is served all the same."""
    sandbox.restrict(ME, [least(TEACHER, commands=["fleet"])])
    before = len(sandbox.calls)

    run = klass.up()

    assert ["launched"] * 2 == run.results()
    assert {"CreateBucket"} == set(denied(sandbox, before))


@pytest.fixture
def student(sandbox, tmp_path):
    """A student before `gpulab init`."""
    return Student(sandbox, tmp_path)


@pytest.fixture
def prepared(sandbox, tmp_path):
    """A student after `gpulab init`, who has every right so far."""
    student = Student.after_init(sandbox, tmp_path)
    sandbox.advance(seconds=60)
    return student


def test_the_least_policy_of_init_sets_everything_up(sandbox, student):
    """Whoever may do this once gets bucket, roles and profile, and may launch nothing with it."""
    sandbox.restrict(ME, [least(student.context.profile, commands=["init"])])
    before = len(sandbox.calls)

    made = prepare(student.context)

    assert all((made.keep_bucket, made.instance_role, made.scheduler_role, made.has_spot_role))
    assert [] == denied(sandbox, before)
    assert student.up().error is not None
    assert [] == student.live()


def test_the_least_policy_of_guard_arms_reads_and_disarms(sandbox, student):
    """A budget that was armed by half guards nobody."""
    sandbox.restrict(ME, [least(student.context.profile, commands=["guard"])])
    before = len(sandbox.calls)

    armed = guards.arm(
        student.context, limit_usd=Decimal(5), email="ann@example.org", targets=Principals()
    )
    guards.checks(student.context)
    guards.disarm(student.context)

    states = {check.name: check.is_armed for check in armed if check.name != "scheduled ends"}
    assert {"budget": True, "e-mail": True, "no launches": True} == states
    assert [] == denied(sandbox, before)


def test_the_least_policy_of_image_bakes_copies_and_prunes(sandbox, prepared):
    """An instance that is launched, an image that is made and tagged, and one that is tested: each is another right."""
    baker = with_host(prepared)
    sandbox.restrict(ME, [least(baker.context.profile, commands=["image"])])
    before = len(sandbox.calls)

    baked(baker)
    regions = ("us-east-1", "us-west-2")
    ((made, *_), _) = images.listing(baker.context, regions)
    list(images.copy(baker.context, made.baked, "us-west-2"))
    there, unread = images.listing(baker.context, regions)
    for row in there:
        images.delete(baker.context, row.baked)

    assert (2, ()) == (len(there), tuple(unread))
    assert () == tuple(images.listing(baker.context, regions)[0])
    assert [] == denied(sandbox, before)


def test_the_least_policy_of_pull_brings_kept_work(sandbox, prepared, tmp_path):
    """The instance has ended; what it kept must come back to whoever may do nothing else."""
    instance = prepared.up().instance
    machine = instances_that_keep.Machines(sandbox, tmp_path / "machines").boot(instance.id)
    machine.write("week4.ipynb", b"{}")
    machine.save()
    sandbox.restrict(ME, [least(prepared.context.profile, commands=["pull"])])
    before = len(sandbox.calls)

    report = keep.fetch(
        prepared.context, keep.find(prepared.context, instance.name), tmp_path / "here"
    )

    assert (1, b"{}") == (report.files, (tmp_path / "here/week4.ipynb").read_bytes())
    assert [] == denied(sandbox, before)


@pytest.mark.parametrize("command", ["open", "ssh", "push", "show", "check", "logs", "extend"])
def test_whoever_asks_for_an_ended_instance_is_told_where_its_work_is(
    sandbox, prepared, tmp_path, command
):
    """To hear that no kept work was found, because looking was not allowed, would be the fright of a term."""
    instance = prepared.up().instance
    machine = instances_that_keep.Machines(sandbox, tmp_path / "machines").boot(instance.id)
    machine.write("week4.ipynb", b"{}")
    machine.save()
    a_client("ec2").terminate_instances(InstanceIds=[instance.id])
    sandbox.advance(seconds=120)
    sandbox.restrict(ME, [least(prepared.context.profile, commands=[command])])
    before = len(sandbox.calls)

    with pytest.raises(WrongUsage) as told:
        instances.find(prepared.context, instance.name)

    assert "Its work is kept in s3://" in told.value.hint
    assert [] == denied(sandbox, before)


def test_no_command_is_without_a_test_of_its_least_policy():
    """A command that is new in the table must be held to it by somebody."""
    assert {"fleet", "close", "init", "guard", "image", "pull"} == known_commands() - DAY.keys()
