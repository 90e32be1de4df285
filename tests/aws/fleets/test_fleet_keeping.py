"""Where a class's instances keep the work is known by the account, not by what this computer remembers of it."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from gpulab.aws.workspace import Bucket
from gpulab.fleets import closing
from gpulab.fleets.events import Unwritten
from gpulab.launch.account.storage import bucket_region, our_bucket
from gpulab.store.config import Profile
from gpulab.view.fleet import sentence

_spec = importlib.util.spec_from_file_location(
    "instances_that_keep", Path(__file__).with_name("instances_that_keep.py")
)
keeping = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(keeping)


@pytest.fixture
def machines(sandbox, tmp_path):
    return keeping.Machines(sandbox, tmp_path / "machines")


def end_all(sandbox):
    for instance in sandbox.instances("running"):
        sandbox.machine_exited(instance["InstanceId"])
    sandbox.advance(60)


def start_anew(klass, sandbox):
    """Launch the class again, after the instances before have ended; the run, and at which call it began."""
    end_all(sandbox)
    calls = len(sandbox.calls)
    return klass.up(), calls


def close_and_open_elsewhere(klass, sandbox, tmp_path):
    """Another teacher closes the course, which removes the role, and launches it again."""
    end_all(sandbox)
    home, klass.home = klass.home, tmp_path / "other"
    accounts, everyone = klass.accounts(), klass.wish().everyone
    found = closing.look(accounts, [everyone[0].account], everyone)
    (cleared,) = closing.clear(accounts, found)
    assert "gpulab-work-course-c1" in cleared.roles
    klass.up()
    klass.home = home


def test_work_is_kept_after_another_computer_has_made_the_role_again(
    make_class, machines, sandbox, tmp_path
):
    """The name is the same and the id is not: every save under the old one's prefix would be refused, for a month."""
    klass = make_class(1)
    klass.up()
    close_and_open_elsewhere(klass, sandbox, tmp_path)

    run, _ = start_anew(klass, sandbox)

    machine = machines.boot(run.outcomes[0].instance.id)
    machine.write("a.ipynb", b"1")
    assert 1 == machine.save()["uploaded"]


def test_a_bad_minute_of_iam_leaves_what_is_known_of_the_role(make_class, sandbox):
    """The lab begins at one; what was right last week most likely is."""
    klass = make_class(1)
    klass.up()
    sandbox.refuse("GetRole", "ServiceUnavailable", status=503, times=None)

    run, _ = start_anew(klass, sandbox)

    assert ["launched"] == run.results()
    assert [True] == ["IamInstanceProfile" in i for i in sandbox.instances("running")]


def test_the_role_is_read_once_for_a_class_however_large(make_class, sandbox):
    """One call more for each launch of a lab, not for each student."""
    klass = make_class(3)
    klass.up()

    _, calls = start_anew(klass, sandbox)

    assert 1 == klass.operations(calls).count("GetRole")


def test_seats_that_could_not_be_written_down_are_said(make_class, sandbox):
    """On the teacher's other laptop the work of these instances would be nobody's, and that at the hand-in."""
    klass = make_class(1)
    klass.up()
    sandbox.refuse("PutObject", "AccessDenied", status=403, times=None)

    run, _ = start_anew(klass, sandbox)

    (said,) = [e for e in run.events if isinstance(e, Unwritten)]
    assert ["launched"] == run.results()
    assert ("profile default",) == said.accounts
    assert sentence(said, now=sandbox.now()).startswith(
        "In profile default it could not be written down whose instance is whose ("
    )


def test_a_stack_s_bucket_is_looked_for_in_the_region_it_is_in(make_class, sandbox):
    """CloudFormation names the bucket of a student's own account, and that name says nothing of where it is."""
    klass = make_class(1, kind="own")
    klass.up()
    accounts, (seat,) = klass.accounts(), klass.wish().everyone
    account = accounts.find_keeping(seat.account)
    there = Bucket("student-work-1a2b3c", "eu-west-1", seat.account.number)
    role = replace(account.keeping.role, bucket=there)
    account = replace(account, keeping=replace(account.keeping, role=role))

    assert there == our_bucket(account.launching(seat.owner))


def test_a_bucket_of_one_s_own_is_where_the_configuration_says():
    """A university's bucket is named as the university names it; signed for another region, S3 refuses every save."""
    named = Profile(name="p", keep_bucket="gpulab-1-eu-north-1")

    assert "eu-north-1" == bucket_region(named)
    assert "eu-west-1" == bucket_region(Profile(name="p", keep_bucket="x", keep_region="eu-west-1"))
    assert "us-east-1" == bucket_region(Profile(name="p", keep_bucket="x"))
