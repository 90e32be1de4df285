"""R10, R20, R21 and R22: throttling, credentials, faults on demand, and the closed network."""

from __future__ import annotations

import http.client
import socket
from datetime import timedelta

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from gpulab.sandbox import Sandbox
from gpulab.sandbox.network_guard import NetworkClosed

# -- R10 ----------------------------------------------------------------------------------------------------------------------


def test_plain_moto_is_never_too_busy(plain_moto, client, code_of):
    """A fleet launch could not be rehearsed."""
    ec2 = client("ec2")

    assert {"ok"} == {
        code_of(ec2.run_instances, ImageId="ami-12345678", MinCount=1, MaxCount=1)
        for _ in range(12)
    }


def test_the_sixth_launch_at_once_is_throttled(sandbox, ec2, a_launch, code_of):
    """RunInstances has five tokens and gets two back each second, per account and Region."""
    launch = a_launch(InstanceType="t3.micro", InstanceMarketOptions=None)
    codes = [code_of(ec2.run_instances, **launch) for _ in range(6)]

    sandbox.advance(1)
    codes += [code_of(ec2.run_instances, **launch) for _ in range(3)]

    assert ["ok"] * 5 + ["RequestLimitExceeded", "ok", "ok", "RequestLimitExceeded"] == codes


def test_accounts_and_regions_do_not_collide(sandbox, ec2, a_launch, client, code_of):
    """Three hundred students in accounts of their own do not throttle each other."""
    for _ in range(6):
        code_of(ec2.run_instances, **a_launch())
    other = sandbox.key_of("222222222222")
    elsewhere = client(
        "ec2", aws_access_key_id=other.access_key, aws_secret_access_key=other.secret
    )

    code = code_of(elsewhere.run_instances, **a_launch())

    assert "ok" == code
    assert "222222222222" == sandbox.calls[-1].account


def test_an_unfiltered_describe_has_the_smaller_bucket(sandbox, ec2, code_of):
    """Fifty at once without a filter, a hundred with one."""
    plain = [code_of(ec2.describe_instances) for _ in range(51)]
    paged = [code_of(ec2.describe_instances, MaxResults=5) for _ in range(51)]

    assert (["ok"] * 50 + ["RequestLimitExceeded"], ["ok"] * 51) == (plain, paged)


def test_many_instances_at_once_have_a_bucket_of_their_own(sandbox, ec2, a_launch, code_of):
    """A thousand at once, then two a second: counted in instances, beside the calls."""
    sandbox.set_quota("L-34B43A08", "us-east-1", 10_000)
    launch = a_launch(InstanceType="t3.micro", MinCount=1001, MaxCount=1001)

    assert "RequestLimitExceeded" == code_of(ec2.run_instances, **launch)


def test_a_rehearsal_may_set_a_bucket(sandbox, ec2, code_of):
    """To see what a busy account does to a lab."""
    sandbox.throttle.set_bucket("DescribeInstances", 1, 0.1)
    codes = [code_of(ec2.describe_instances) for _ in range(2)]

    sandbox.advance(10)

    assert ["ok", "RequestLimitExceeded", "ok"] == [*codes, code_of(ec2.describe_instances)]


# -- R20 ----------------------------------------------------------------------------------------------------------------------


def test_plain_moto_takes_any_key(plain_moto, client, code_of):
    """A typing error in a pasted key would go unseen."""
    ec2 = client("ec2", aws_access_key_id="AKIANOBODYSKEY000000", aws_secret_access_key="x")

    assert "ok" == code_of(ec2.describe_instances)


@pytest.mark.parametrize(
    ("service", "method", "unknown", "expired", "denied"),
    [
        ("ec2", "describe_instances", "AuthFailure", "RequestExpired", "UnauthorizedOperation"),
        ("sts", "get_caller_identity", "InvalidClientTokenId", "ExpiredToken", "AccessDenied"),
        ("s3", "list_buckets", "InvalidAccessKeyId", "ExpiredToken", "AccessDenied"),
        (
            "pricing",
            "describe_services",
            "UnrecognizedClientException",
            "ExpiredTokenException",
            "AccessDeniedException",
        ),
    ],
)
def test_each_service_has_its_own_words(
    sandbox, client, code_of, service, method, unknown, expired, denied
):
    """One cause, four codes: what a program must recognise as the same thing."""
    nobody = {"aws_access_key_id": "AKIANOBODYSKEY000000", "aws_secret_access_key": "x"}
    codes = [code_of(getattr(client(service, **nobody), method))]
    key = sandbox.session_of(lasts_seconds=600)
    late = {
        "aws_access_key_id": key.access_key,
        "aws_secret_access_key": key.secret,
        "aws_session_token": key.token,
    }
    sandbox.advance(600)
    codes.append(code_of(getattr(client(service, **late), method)))

    sandbox.deny("*")
    codes.append(code_of(getattr(client(service), method)))

    assert [unknown, expired, denied] == codes


def test_credentials_can_expire_under_a_running_program(sandbox, ec2, code_of):
    """Pasted class credentials do so in the middle of a lab."""
    sandbox.expire_credentials(in_seconds=60)
    codes = [code_of(ec2.describe_instances)]
    sandbox.advance(60)
    codes.append(code_of(ec2.describe_instances))

    assert ["ok", "RequestExpired"] == codes


def test_a_session_key_without_its_token_is_refused(sandbox, client, code_of):
    """The commonest half-pasted credential."""
    key = sandbox.session_of()
    half = client("ec2", aws_access_key_id=key.access_key, aws_secret_access_key=key.secret)

    assert "AuthFailure" == code_of(half.describe_instances)


@pytest.mark.parametrize(
    ("service", "method", "expected"),
    [
        ("ec2", "describe_instances", "AuthFailure"),
        ("sts", "get_caller_identity", "SignatureDoesNotMatch"),
        ("freetier", "get_account_plan_state", "InvalidSignatureException"),
    ],
)
def test_a_wrong_secret_is_found(sandbox, client, code_of, service, method, expected):
    """One character lost in pasting; moto does not look."""
    key = sandbox.key_of()
    wrong = {"aws_access_key_id": key.access_key, "aws_secret_access_key": key.secret[:-1]}

    assert expected == code_of(getattr(client(service, **wrong), method))


def test_a_denial_names_the_action_and_can_be_decoded(sandbox, ec2, a_launch, client):
    """The message says which permission to ask the teacher for."""
    sandbox.deny("ec2:RunInstances")

    with pytest.raises(
        ClientError, match="is not authorized to perform: ec2:RunInstances"
    ) as caught:
        ec2.run_instances(**a_launch())

    encoded = str(caught.value).split("Encoded authorization failure message: ")[1]
    decoded = client("sts").decode_authorization_message(EncodedMessage=encoded)
    assert '"action": "ec2:RunInstances"' in decoded["DecodedMessage"]


def test_passing_a_role_needs_its_own_permission(sandbox, ec2, a_launch, client, code_of):
    """A launch with a role fails where one without it works."""
    client("iam").create_instance_profile(InstanceProfileName="lab")
    sandbox.advance(2)
    sandbox.deny("iam:PassRole")

    codes = [
        code_of(ec2.run_instances, **a_launch(IamInstanceProfile={"Name": "lab"})),
        code_of(ec2.run_instances, **a_launch()),
    ]

    assert ["UnauthorizedOperation", "ok"] == codes


# -- R21 ----------------------------------------------------------------------------------------------------------------------


def test_a_refusal_takes_no_effect_and_ends_after_its_times(sandbox, ec2, a_launch, code_of):
    """Below botocore: the error is an HTTP answer."""
    sandbox.refuse("RunInstances", "InsufficientInstanceCapacity", zone="us-east-1a", times=1)

    codes = [code_of(ec2.run_instances, **a_launch()) for _ in range(2)]

    assert (["InsufficientInstanceCapacity", "ok"], 1) == (codes, len(sandbox.instances()))


def test_conditions_limit_a_fault(sandbox, ec2, a_launch, code_of):
    """By zone, by text among the parameters, and after some calls have passed."""
    sandbox.refuse("RunInstances", "InternalError", zone="us-east-1b")
    sandbox.refuse("RunInstances", "Unavailable", contains="g5.xlarge", skip=1)

    codes = [
        code_of(ec2.run_instances, **a_launch()),
        code_of(ec2.run_instances, **a_launch(Placement={"AvailabilityZone": "us-east-1b"})),
        code_of(ec2.run_instances, **a_launch(InstanceType="g5.xlarge")),
        code_of(ec2.run_instances, **a_launch(InstanceType="g5.xlarge")),
    ]

    assert ["ok", "InternalError", "ok", "Unavailable"] == codes


def test_a_lost_reply_took_effect(sandbox, ec2, a_launch):
    """The ambiguous case: nothing came back, and an instance is running."""
    sandbox.lose_reply("RunInstances")

    with pytest.raises(ReadTimeoutError):
        ec2.run_instances(**a_launch(ClientToken="t"))

    assert (1, ["reply lost"]) == (len(sandbox.instances()), [c.outcome for c in sandbox.calls])


def test_botocores_own_retry_after_a_lost_reply_launches_once(sandbox, a_launch):
    """Botocore repeats the same token, and the token does what it is for."""
    patient = boto3.client(
        "ec2", config=Config(retries={"total_max_attempts": 2, "mode": "standard"})
    )
    sandbox.lose_reply("RunInstances")

    patient.run_instances(**a_launch())

    assert (1, ["reply lost", "ok"]) == (
        len(sandbox.instances()),
        [c.outcome for c in sandbox.calls],
    )


def test_a_dropped_request_took_no_effect(sandbox, ec2, a_launch):
    """The other half of the ambiguity; a program cannot tell them apart."""
    sandbox.drop_request("RunInstances")

    with pytest.raises(ConnectionClosedError):
        ec2.run_instances(**a_launch())

    assert [] == sandbox.instances()


def test_an_error_after_the_effect(sandbox, ec2, a_launch, code_of):
    """A 500 says nothing about what happened."""
    sandbox.fail_after_effect("RunInstances", "InternalError")

    code = code_of(ec2.run_instances, **a_launch())

    assert ("InternalError", 1) == (code, len(sandbox.instances()))


def test_latency_is_simulated_time(sandbox, ec2):
    """Nobody waits in a test."""
    before = sandbox.now()
    sandbox.set_latency("DescribeInstances", 30)

    ec2.describe_instances()

    assert timedelta(seconds=30) == sandbox.now() - before


def test_the_log_tells_each_call_and_no_secret(sandbox, ec2, a_launch):
    """`sandbox log --json` prints it; user data holds a course's scripts and keys."""
    ec2.run_instances(**a_launch(UserData="#!/bin/sh\n# s3cr3t\n"))

    entry = sandbox.calls.of("RunInstances")[0].as_json()
    assert ("2026-11-16T09:00:00Z", "123456789012", "us-east-1", "ec2", "ok", "us-east-1a") == (
        entry["time"],
        entry["account"],
        entry["region"],
        entry["service"],
        entry["outcome"],
        entry["parameters"]["Placement"]["AvailabilityZone"],
    )
    assert "<28 characters>" == entry["parameters"]["UserData"]
    assert "s3cr3t" not in str(entry)


# -- R22 ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leave",
    [
        lambda: socket.create_connection(("192.0.2.1", 443), timeout=1),
        lambda: socket.getaddrinfo("freetier.us-east-1.api.aws", 443),
        lambda: http.client.HTTPConnection("example.org", timeout=1).connect(),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
    ],
    ids=["address", "name", "http", "datagram"],
)
def test_nothing_leaves_this_machine(sandbox, leave):
    """A test that reaches the real AWS could cost real money."""
    with pytest.raises(OSError, match=r"nothing may leave this machine: refused to reach \S+"):
        leave()


def test_loopback_stays_open(sandbox):
    """Machines and tunnels of the sandbox live there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        with socket.create_connection(address, timeout=1) as connection:
            assert address == connection.getpeername()


def test_the_guard_is_gone_afterwards():
    """What was patched is given back, also when guards are nested."""
    before = (socket.getaddrinfo, socket.socket.connect)

    with Sandbox(), Sandbox():
        with pytest.raises(NetworkClosed):
            socket.getaddrinfo("example.org", 80)

    assert before == (socket.getaddrinfo, socket.socket.connect)


def test_services_that_moto_lets_out_are_answered_here(sandbox, client, code_of):
    """Under plain moto these calls resolve real hosts (`*.api.aws`)."""
    assert "ok" == code_of(client("freetier").get_account_plan_state)


def test_a_region_that_does_not_exist_does_not_answer(sandbox, client):
    """A misspelt Region is a host without an address."""
    with pytest.raises(ConnectionClosedError):
        client("ec2", region_name="us-eats-1").describe_instances()


def test_what_nobody_simulates_says_so(sandbox, client, code_of):
    """A clear answer beats a page of HTML or a call that leaves."""
    codes = [
        code_of(
            client("ec2").get_spot_placement_scores, TargetCapacity=1, InstanceTypes=["g4dn.xlarge"]
        ),
        code_of(client("billing").list_billing_views),
        code_of(client("invoicing").list_invoice_units),
    ]

    assert ["NotSimulated"] * 3 == codes
