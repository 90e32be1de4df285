"""What a launch does when the bucket that keeps the work does not answer: a bad minute is waited for, a missing right is told."""

from __future__ import annotations

import pytest

from gpulab.errors import CredentialsInvalid, Throttled
from gpulab.launch.events import WaitingFor, Warned

from .conftest import Student


@pytest.fixture
def with_bucket(sandbox, tmp_path):
    """A computer after `gpulab init`, in an account where work can be kept."""
    return Student.after_init(sandbox, tmp_path)


def waits(run):
    return [e for e in run.of(WaitingFor) if e.what == "bucket"]


def has_role(sandbox):
    return ["IamInstanceProfile" in i for i in sandbox.instances("pending", "running")]


def test_a_bad_minute_of_s3_is_waited_for(sandbox, with_bucket):
    """An instance that is launched meanwhile would have no bucket for its whole life, and lose its work to an unannounced end."""
    sandbox.refuse("PutObject", "SlowDown", status=503, times=4)  # the SDK itself asks three times

    run = with_bucket.up()

    assert [run.instance.id] == with_bucket.live()
    assert 1 == len(waits(run))
    assert [True] == has_role(sandbox)


def test_an_outage_of_s3_launches_nothing_and_says_so(sandbox, with_bucket):
    """Waiting a few minutes costs nothing; an afternoon without a bucket may cost the afternoon."""
    sandbox.refuse("PutObject", "ServiceUnavailable", status=503)

    run = with_bucket.up()

    assert Throttled is type(run.error)
    assert run.error.message.startswith("nothing was launched: ")
    assert "Repeat the command in a few minutes; nothing costs meanwhile" == run.error.hint
    assert [] == with_bucket.live()


def test_after_the_outage_the_same_command_launches_with_the_bucket(sandbox, with_bucket):
    """The advice must be right: nothing of the refused launch stands in the way."""
    sandbox.refuse("PutObject", "ServiceUnavailable", status=503)
    with_bucket.up()
    sandbox.faults.clear()

    run = with_bucket.again().up()

    assert [run.instance.id] == with_bucket.live()
    assert [True] == has_role(sandbox)


def test_a_bucket_that_may_not_be_written_is_told_and_the_launch_goes_on(sandbox, with_bucket):
    """Waiting does not give a right; `gpulab stop` then copies the work to this computer."""
    sandbox.refuse("PutObject", "AccessDenied", status=403)

    run = with_bucket.up()

    assert [run.instance.id] == with_bucket.live()
    assert ["gpulab stop"] == [e.text.split("`")[1] for e in run.of(Warned) if "bucket" in e.text]
    assert [False] == has_role(sandbox)


def test_expired_credentials_are_told_as_what_they_are(sandbox, with_bucket):
    """They are as bad for EC2: the launch must not go on to find that out, and the bucket is not to blame."""
    sandbox.refuse("PutObject", "ExpiredToken", status=400)

    run = with_bucket.up()

    assert CredentialsInvalid is type(run.error)
    assert [] == with_bucket.live()
