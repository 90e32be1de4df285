"""What never became an answer of AWS, and what AWS's words say beside its code."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from botocore import exceptions as boto

from gpulab import errors
from gpulab.aws.address import own_address
from gpulab.aws.errors import denied_action, explained
from gpulab.aws.network import checked_cidr, key_pair_name
from gpulab.aws.roles import Role
from gpulab.aws.session import Cloud

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def raised(error: Exception, **how) -> errors.GpulabError:
    with pytest.raises(errors.GpulabError) as found, explained("launch it", **how):
        raise error
    return found.value


def a_refusal(
    code: str,
    words: str = "",
    *,
    status: int = 400,
    date: str = "",
    operation: str = "RunInstances",
) -> boto.ClientError:
    answer = {
        "Error": {"Code": code, "Message": words},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {"date": date}},
    }
    return boto.ClientError(answer, operation)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            boto.ReadTimeoutError(endpoint_url="u"),
            errors.Ambiguous,
            "the connection broke before AWS's answer",
        ),
        (
            boto.ConnectionClosedError(endpoint_url="u"),
            errors.Ambiguous,
            "the connection broke before AWS's answer",
        ),
        (boto.EndpointConnectionError(endpoint_url="u"), errors.Throttled, "AWS cannot be reached"),
        (boto.ConnectTimeoutError(endpoint_url="u"), errors.Throttled, "AWS cannot be reached"),
        (
            boto.NoCredentialsError(),
            errors.CredentialsInvalid,
            "there are no usable AWS credentials",
        ),
        (
            boto.ProfileNotFound(profile="p"),
            errors.WrongUsage,
            "The config profile (p) could not be found",
        ),
        (boto.ParamValidationError(report="r"), errors.InvalidRequest, "ParamValidationError"),
    ],
)
def test_what_was_lost_on_the_way_is_told_apart_from_what_was_never_sent(error, kind, says):
    """A lost answer may have launched; a missing network has not; neither is a reason for another zone."""
    found = raised(error)

    assert kind is type(found)
    assert says in found.message


_THEN = ", then repeat the command; it goes on where it stopped"
_PASTE = "`gpulab init --paste` takes new ones from a class page"
_KEYS = "aws_access_key_id = ASIAEXAMPLEEXAMPLE12\naws_secret_access_key = example\n"


@pytest.mark.parametrize(
    ("aws_profile", "is_own_file", "hint"),
    [
        (
            "",
            False,
            f"Set the environment's AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN anew, or {_PASTE}",
        ),
        ("keys", False, f"Write new keys below [keys] in AWS's credentials file, or {_PASTE}"),
        ("keys", True, "`gpulab init --paste` takes new ones from the class page"),
        (
            "program",
            False,
            f"Sign in again where they came from, such as with `aws sso login --profile program`, or {_PASTE}",
        ),
    ],
)
def test_expired_credentials_are_renewed_where_they_came_from(
    aws_profile, is_own_file, hint, tmp_path, monkeypatch
):
    """A student has a class page, a TA a profile or a terminal full of exported keys; one hint each, and it works."""
    said = json.dumps({"Version": 1, "AccessKeyId": "A", "SecretAccessKey": "s"})
    (tmp_path / "config").write_text(f"[profile program]\ncredential_process = echo '{said}'\n")
    (tmp_path / "keys").write_text(f"[keys]\n{_KEYS}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ASIAEXAMPLEEXAMPLE34")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
    cloud = Cloud(
        aws_profile=aws_profile,
        config_file=tmp_path / "config",
        credentials_file=tmp_path / "keys" if is_own_file else None,
    )

    with pytest.raises(errors.CredentialsInvalid) as refused, cloud.explained("list instances"):
        raise a_refusal("ExpiredToken", operation="DescribeInstances")

    assert hint + _THEN == refused.value.hint


def test_a_roles_credentials_are_renewed_for_the_profile_that_assumes_it(tmp_path, monkeypatch):
    """A class's accounts are reached by roles; what has expired is the teacher's key, pasted into the course's profile."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "keys").write_text(f"[keys]\n{_KEYS}")
    base = Cloud(aws_profile="keys", credentials_file=tmp_path / "keys", profile="course")
    role = Role("arn:aws:iam::123456789012:role/gpulab-course", "x", "ta")
    cloud = Cloud(role=role, via=base)

    with pytest.raises(errors.CredentialsInvalid) as refused, cloud.explained("list instances"):
        raise a_refusal("ExpiredToken", operation="DescribeInstances")
    with pytest.raises(errors.CredentialsInvalid) as without, cloud.explained("list instances"):
        raise boto.NoCredentialsError

    paste = "`gpulab --profile course init --paste`"
    assert f"{paste} takes new ones from the class page{_THEN}" == refused.value.hint
    assert f"`gpulab --profile course init` sets them up, {paste} those" in without.value.hint


def test_a_sign_in_that_is_over_is_begun_again(tmp_path):
    """Identity Center's session ends each day, and botocore asks AWS nothing then; there are no keys to paste."""
    (tmp_path / "config").write_text("[profile course]\n")
    cloud = Cloud(aws_profile="course", config_file=tmp_path / "config")

    with pytest.raises(errors.CredentialsInvalid) as refused, cloud.explained("list instances"):
        raise boto.UnauthorizedSSOTokenError

    assert f"`aws sso login --profile course` signs in again{_THEN}" == refused.value.hint
    assert "the AWS sign-in cannot be used" in refused.value.message


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_error_of_an_unknown_code_is_ambiguous(status):
    """Whatever AWS calls it: after a 5xx nobody knows what took effect."""
    assert errors.Ambiguous is type(raised(a_refusal("NewTrouble", status=status)))


@pytest.mark.parametrize("code", ["RequestExpired", "SignatureDoesNotMatch", "AuthFailure"])
@pytest.mark.parametrize(
    ("ahead_min", "kind", "says"),
    [
        (20, errors.ClockSkewed, "this computer's clock is 20 min ahead of AWS's"),
        (-20, errors.ClockSkewed, "this computer's clock is 20 min behind AWS's"),
        (1, errors.CredentialsInvalid, "AWS does not accept the credentials"),
    ],
)
def test_a_wrong_clock_is_told_by_aws_own_date(code, ahead_min, kind, says):
    """AWS gives the same codes for wrong keys and for a wrong clock; only its Date header tells."""
    found = raised(
        a_refusal(code, date="Mon, 23 Nov 2026 12:00:00 GMT"),
        now=lambda: NOW + timedelta(minutes=ahead_min),
    )

    assert kind is type(found)
    assert says in found.message


def test_an_encoded_refusal_is_decoded_where_that_is_allowed():
    """EC2 hides the denied action in an encoded message; the student needs its name."""
    words = "You are not authorized to perform this operation. Encoded authorization failure message: abc123"

    found = raised(a_refusal("UnauthorizedOperation", words), decode=lambda text: f"ec2:Run{text}")

    assert "these credentials may not call ec2:Runabc123 (UnauthorizedOperation)" in found.message


def test_the_denied_action_is_read_from_the_words():
    """Newer refusals say it in plain text."""
    words = "User: arn:aws:iam::1:user/a is not authorized to perform: ec2:RunInstances on resource: x because no policy"

    assert "ec2:RunInstances" == denied_action(words)
    assert "" == denied_action("no")


def test_the_free_plan_is_recognised_by_its_words():
    """The code is the same as for any wrong combination of values."""
    words = "The specified instance type is not eligible for Free Tier. For a list of Free Tier instance types, run ..."

    found = raised(a_refusal("InvalidParameterCombination", words))

    assert errors.AccountNotReady is type(found)
    assert words == found.detail


@pytest.mark.parametrize(
    "said", ["203.0.113.7\n", "10.0.0.1", "<html>", "", "1" * 60, "127.0.0.1", "169.254.1.1"]
)
def test_only_a_global_address_is_believed_to_be_ours(said):
    """A captive portal answers anything; port 22 must not be opened to it."""
    with pytest.raises(errors.AwsError) as failure:
        own_address(lambda: said)

    assert "`gpulab up --cidr 203.0.113.7/32`, or once for all" in failure.value.hint


@pytest.mark.parametrize("said", ["93.184.215.14\n", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_a_global_address_is_taken(said):
    """Both families occur on campus networks."""
    assert said.strip() == own_address(lambda: said)


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "::/0", "8.8.8.8/0"])
def test_the_whole_internet_is_refused(cidr):
    """A convenience that every scanner finds within minutes."""
    with pytest.raises(errors.WrongUsage, match="would open ssh to the whole internet"):
        checked_cidr(cidr)


def test_a_lone_address_becomes_a_range_of_one():
    """People type addresses."""
    assert ("203.0.113.7/32", "2001:db8::1/128") == (
        checked_cidr("203.0.113.7"),
        checked_cidr("2001:db8::1"),
    )


def test_another_key_gets_another_name():
    """So a name that exists is the same key, and nothing has to be replaced."""
    one, other = (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== a",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5BBBBIB== a",
    )

    assert key_pair_name(one) == key_pair_name(one.replace(" a", " another comment"))
    assert key_pair_name(one) != key_pair_name(other)
    with pytest.raises(errors.WrongUsage):
        key_pair_name("-----BEGIN OPENSSH PRIVATE KEY-----")


@pytest.mark.parametrize(
    ("doing", "kind", "hint"),
    [
        ("read spot prices in us-east-1", errors.Throttled, "Check the network"),
        (
            "launch g4dn.xlarge in us-east-1a",
            errors.Ambiguous,
            "Nobody knows yet whether it took effect",
        ),
    ],
)
def test_a_broken_connection_worries_only_about_what_could_have_taken_effect(doing, kind, hint):
    """A student who looked at prices must not be told that something may have been started."""
    with pytest.raises(errors.AwsError) as found, explained(doing):
        raise boto.ConnectionClosedError(endpoint_url="u")

    assert kind is type(found.value)
    assert found.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("operation", "doing", "kind", "hint"),
    [
        ("DescribeInstances", "end i-1", errors.Throttled, "Repeat the command in a minute"),
        ("GetCallerIdentity", "set up", errors.Throttled, "Repeat the command in a minute"),
        ("ListObjectVersions", "delete kept work", errors.Throttled, "Repeat the command"),
        ("HeadBucket", "make the bucket", errors.Throttled, "Repeat the command in a minute"),
        ("RunInstances", "check that it may be launched", errors.Throttled, "Repeat the command"),
        ("RunInstances", "launch it", errors.Ambiguous, "Nobody knows yet whether it took effect"),
        ("DeleteObjects", "delete kept work", errors.Ambiguous, "Nobody knows yet whether"),
        ("TerminateInstances", "end i-1", errors.Ambiguous, "Nobody knows yet whether"),
    ],
)
@pytest.mark.parametrize(("code", "status"), [("InternalError", 500), ("NewTrouble", 503)])
def test_a_failure_inside_aws_leaves_doubt_only_after_a_call_that_changes_something(
    operation, doing, kind, hint, code, status
):
    """`gpulab ls` in AWS's bad minute must not make a student look for what it might have started."""
    with pytest.raises(errors.AwsError) as found, explained(doing):
        raise a_refusal(code, status=status, operation=operation)

    assert kind is type(found.value)
    assert found.value.hint.startswith(hint)
    assert f"could not {doing}: AWS failed inside ({code})" == found.value.message


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:33497/", "http://localhost:33497", "http://[::1]:33497"]
)
def test_a_profile_that_leads_to_this_computer_is_not_blamed_on_the_network(endpoint):
    """After `gpulab sandbox stop` a student would look for a broken VPN."""
    found = raised(boto.EndpointConnectionError(endpoint_url=endpoint))

    assert f"nothing answers at {endpoint.rstrip('/')}, where this profile leads" in found.message
    assert found.hint.startswith("`gpulab sandbox start` starts a simulated AWS on this computer")


def test_a_profile_that_leads_elsewhere_is_told_of_the_network():
    """A hotel's network, not the sandbox, stands in the way of the real AWS."""
    found = raised(boto.EndpointConnectionError(endpoint_url="https://ec2.us-east-1.amazonaws.com"))

    assert found.message.endswith("AWS cannot be reached (EndpointConnectionError)")
    assert found.hint.startswith("Check the network, a VPN or a proxy")


def _one(argument: str) -> str:
    return argument


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (lambda: _one(), TypeError),
        (lambda: _one("a", "b"), TypeError),
        (lambda: _one(other="a"), TypeError),
        (lambda: _one.nothing, AttributeError),
        (lambda: errors.nothing, AttributeError),
    ],
)
def test_a_fault_of_our_own_is_not_blamed_on_aws(fault, kind):
    """The words about AWS would hide the traceback, and send the student to the wrong place."""
    with pytest.raises(kind), explained("read it"):
        fault()


@pytest.mark.parametrize(
    "read",
    [
        lambda answer: answer["Missing"],
        lambda answer: answer.get("Missing")["Name"],
        lambda answer: answer.get("Missing").lower(),
        lambda answer: answer["Name"].items(),
        lambda answer: int(answer["Name"]),
        lambda answer: answer["Name"] + 1,
    ],
)
def test_an_answer_of_another_shape_is_told_as_such(read):
    """AWS may change an answer; a traceback would say nothing about that."""
    with pytest.raises(errors.AwsError, match="could not read it: AWS's answer cannot be read"):
        with explained("read it"):
            read({"Name": "week4"})
