"""R11, R13, R14 and R15: what takes time on AWS, on a clock the test moves."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gpulab.sandbox import Delays, Rules, Sandbox

PLAIN = {"ImageId": "ami-12345678", "InstanceType": "g4dn.xlarge", "MinCount": 1, "MaxCount": 1}


def state_of(sandbox):
    """The state of the only instance."""
    return sandbox.instances()[0]["State"]["Name"]


# -- R11 ----------------------------------------------------------------------------------------------------------------------


def test_plain_moto_shows_everything_at_once(plain_moto, client):
    """A double launch through eventual consistency cannot happen there."""
    ec2 = client("ec2")
    id_ = ec2.run_instances(**PLAIN)["Instances"][0]["InstanceId"]

    assert 1 == len(ec2.describe_instances(InstanceIds=[id_])["Reservations"])


def test_a_fresh_instance_is_not_found_for_a_while(sandbox, ec2, a_launch, code_of):
    """Neither by id nor by tag: looking by tag and then launching would launch twice."""
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "gpulab:launch", "Value": "l1"}]}]
    id_ = ec2.run_instances(**a_launch(TagSpecifications=tags))["Instances"][0]["InstanceId"]
    by_tag = {"Filters": [{"Name": "tag:gpulab:launch", "Values": ["l1"]}]}
    early = (
        code_of(ec2.describe_instances, InstanceIds=[id_]),
        ec2.describe_instances(**by_tag)["Reservations"],
        code_of(ec2.create_tags, Resources=[id_], Tags=[{"Key": "a", "Value": "b"}]),
    )

    sandbox.advance(1.5)

    found = ec2.describe_instances(**by_tag)["Reservations"][0]["Instances"]
    assert ("InvalidInstanceID.NotFound", [], "InvalidInstanceID.NotFound") == early
    assert [id_] == [instance["InstanceId"] for instance in found]


def test_a_fresh_group_is_not_found_for_a_while(sandbox, ec2, a_launch, code_of):
    """A launch right after CreateSecurityGroup must be ready to wait."""
    group = ec2.create_security_group(GroupName="lab", Description="lab")["GroupId"]
    rule = {
        "GroupId": group,
        "IpProtocol": "tcp",
        "FromPort": 22,
        "ToPort": 22,
        "CidrIp": "192.0.2.1/32",
    }
    early = [
        code_of(ec2.run_instances, **a_launch(SecurityGroupIds=[group])),
        code_of(ec2.authorize_security_group_ingress, **rule),
        len(
            ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["lab"]}])[
                "SecurityGroups"
            ]
        ),
    ]

    sandbox.advance(1.5)

    late = [
        code_of(ec2.run_instances, **a_launch(SecurityGroupIds=[group])),
        code_of(ec2.authorize_security_group_ingress, **rule),
        len(
            ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["lab"]}])[
                "SecurityGroups"
            ]
        ),
    ]
    assert ["InvalidGroup.NotFound", "InvalidGroup.NotFound", 0] == early
    assert ["ok", "ok", 1] == late


def test_a_fresh_instance_profile_is_not_valid_yet(sandbox, ec2, a_launch, client, code_of):
    """The first launch on a virgin account hits this."""
    iam = client("iam")
    iam.create_instance_profile(InstanceProfileName="lab")
    launch = a_launch(IamInstanceProfile={"Name": "lab"})

    early = code_of(ec2.run_instances, **launch)
    sandbox.advance(2)

    assert ("InvalidParameterValue", "ok") == (early, code_of(ec2.run_instances, **launch))


# -- R13 ----------------------------------------------------------------------------------------------------------------------


def test_a_terminated_instance_vanishes_after_an_hour(sandbox, ec2, running, code_of):
    """So what it cost must be written down while it can be seen."""
    id_ = running()
    ec2.terminate_instances(InstanceIds=[id_])
    sandbox.advance(30)
    sandbox.advance(3599)
    seen = code_of(ec2.describe_instances, InstanceIds=[id_])

    sandbox.advance(1)

    assert ("ok", "InvalidInstanceID.NotFound", []) == (
        seen,
        code_of(ec2.describe_instances, InstanceIds=[id_]),
        ec2.describe_instances()["Reservations"],
    )


def test_tags_vanish_with_the_instance_and_the_bill_still_knows_whose_it_was(
    sandbox, ec2, a_launch
):
    """A term has thousands of instances: a simulated account that kept them all would be slower with every lab."""
    tags = [{"Key": "gpulab:owner", "Value": "s1"}]
    specs = [{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")]
    id_ = ec2.run_instances(**a_launch(TagSpecifications=specs))["Instances"][0]["InstanceId"]
    sandbox.advance(600)
    ec2.terminate_instances(InstanceIds=[id_])
    sandbox.advance(30)
    before = len(ec2.describe_tags()["Tags"])

    sandbox.advance(3600)

    assert (2, []) == (before, ec2.describe_tags()["Tags"])
    assert {"s1"} == {line.owner for line in sandbox.bill().lines}


# -- R14 ----------------------------------------------------------------------------------------------------------------------


def test_plain_moto_starts_a_terminated_instance(plain_moto, client):
    """Nothing takes time there, and nothing is final."""
    ec2 = client("ec2")
    id_ = ec2.run_instances(**PLAIN)["Instances"][0]["InstanceId"]
    ec2.terminate_instances(InstanceIds=[id_])

    ec2.start_instances(InstanceIds=[id_])

    instance = ec2.describe_instances()["Reservations"][0]["Instances"][0]
    assert "running" == instance["State"]["Name"]


def test_states_follow_the_clock(sandbox, ec2, a_launch):
    """pending, running, stopping, stopped, pending again, shutting-down, terminated."""
    states = []
    id_ = ec2.run_instances(**a_launch(InstanceMarketOptions=None))["Instances"][0]["InstanceId"]
    states.append(state_of(sandbox))
    for call, wait in (
        (None, 8),
        (ec2.stop_instances, 0),
        (None, 20),
        (ec2.start_instances, 0),
        (None, 8),
        (ec2.terminate_instances, 0),
        (None, 30),
    ):
        if call is not None:
            call(InstanceIds=[id_])
        sandbox.advance(wait)
        states.append(state_of(sandbox))

    assert [
        "pending", "running", "stopping", "stopped", "pending", "running", "shutting-down", "terminated",
    ] == states  # fmt: skip


def test_the_public_address_comes_with_running_and_goes_with_stopped(sandbox, ec2, a_launch):
    """RunInstances answers without one; a program must ask again."""
    launched = ec2.run_instances(**a_launch(InstanceMarketOptions=None))["Instances"][0]
    sandbox.advance(10)
    first = sandbox.instances()[0]["PublicIpAddress"]
    ec2.stop_instances(InstanceIds=[launched["InstanceId"]])
    sandbox.advance(30)
    stopped = sandbox.instances()[0]["PublicIpAddress"]
    ec2.start_instances(InstanceIds=[launched["InstanceId"]])
    sandbox.advance(10)

    second = sandbox.instances()[0]["PublicIpAddress"]

    assert (None, None) == (launched.get("PublicIpAddress"), stopped)
    assert first and second and first != second


def test_the_reason_ends_in_gmt_and_launch_time_follows_the_clock(sandbox, ec2, running):
    """The end of a run can be read from StateTransitionReason alone."""
    id_ = running()

    ec2.terminate_instances(InstanceIds=[id_])

    instance = ec2.describe_instances(InstanceIds=[id_])["Reservations"][0]["Instances"][0]
    assert (
        "User initiated (2026-11-16 09:00:10 GMT)",
        "Client.UserInitiatedShutdown",
        sandbox.now() - timedelta(seconds=10),
    ) == (
        instance["StateTransitionReason"],
        instance["StateReason"]["Code"],
        instance["LaunchTime"],
    )


@pytest.mark.parametrize(
    "code",
    ["Server.InsufficientInstanceCapacity", "Server.InternalError", "Client.VolumeLimitExceeded"],
)
def test_a_pending_instance_may_end_without_running(sandbox, ec2, a_launch, code):
    """RunInstances succeeded, and there is no instance all the same."""
    sandbox.fail_boot(code)

    ec2.run_instances(**a_launch())
    sandbox.advance(60)

    instance = sandbox.instances()[0]
    assert ("terminated", code, 0) == (
        instance["State"]["Name"],
        instance["StateReason"]["Code"],
        sandbox.bill().of_kind("instance"),
    )


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [({"InstanceType": {"Value": "g5.xlarge"}}, "IncorrectInstanceState")],
)
def test_a_running_instance_keeps_its_type(ec2, running, code_of, attribute, expected):
    """Resizing needs a stop first, which one-time spot refuses."""
    id_ = running(InstanceMarketOptions=None)

    assert expected == code_of(ec2.modify_instance_attribute, InstanceId=id_, **attribute)


def test_a_terminated_instance_does_not_start(sandbox, ec2, running, code_of):
    """Terminated is the end."""
    id_ = running(InstanceMarketOptions=None)
    ec2.terminate_instances(InstanceIds=[id_])
    sandbox.advance(60)

    assert "IncorrectInstanceState" == code_of(ec2.start_instances, InstanceIds=[id_])


def test_status_checks_take_two_minutes_and_may_fail(sandbox, ec2, running):
    """Running is not yet healthy."""
    id_ = running()

    def checks():
        return ec2.describe_instance_status(InstanceIds=[id_])["InstanceStatuses"][0][
            "InstanceStatus"
        ]["Status"]

    seen = [checks()]
    sandbox.advance(120)
    seen.append(checks())
    sandbox.impair(id_)
    seen.append(checks())

    assert ["initializing", "ok", "impaired"] == seen


def test_delays_are_the_tests_own(client):
    """A test of something else sets them to nothing."""
    rules = Rules(delays=Delays(boot=timedelta(0), consistency=timedelta(0)))
    with Sandbox(rules=rules) as sandbox:
        image = next(iter(sandbox.images.parameters("us-east-1").values()))[0]
        client("ec2").run_instances(**{**PLAIN, "ImageId": image})

        assert ["running"] == [i["State"]["Name"] for i in sandbox.instances()]


@pytest.mark.parametrize(
    ("market", "expected"), [({"MarketType": "spot"}, "terminate"), (None, "stop")]
)
def test_a_shutdown_from_inside_ends_spot_and_stops_on_demand(ec2, running, market, expected):
    """The default of InstanceInitiatedShutdownBehavior, as the API shows it."""
    id_ = running(InstanceMarketOptions=market)

    shown = ec2.describe_instance_attribute(
        InstanceId=id_, Attribute="instanceInitiatedShutdownBehavior"
    )

    assert expected == shown["InstanceInitiatedShutdownBehavior"]["Value"]


@pytest.mark.parametrize(
    ("name", "value", "matches"),
    [
        ("instance-lifecycle", "spot", True),
        ("client-token", "t-1", True),
        ("spot-instance-request-id", "sir-*", True),
        ("network-interface.subnet-id", "subnet-0", False),
        ("metadata-options.http-tokens", "required", False),
        ("block-device-mapping.device-name", "/dev/sda1", True),
        ("instance-type", "g4dn.*", True),
    ],
)
def test_filters_that_moto_lacks(ec2, running, name, value, matches):
    """Adoption looks by client token; moto raises NotImplementedError at most of these."""
    running(ClientToken="t-1")

    found = ec2.describe_instances(Filters=[{"Name": name, "Values": [value]}])["Reservations"]

    assert matches == bool(found)


def test_an_unknown_filter_is_refused_even_when_there_is_nothing(ec2, code_of):
    """A misspelt filter must not look like an empty account."""
    code = code_of(
        ec2.describe_instances, Filters=[{"Name": "instance-liefcycle", "Values": ["spot"]}]
    )

    assert "InvalidParameterValue" == code


# -- R15 ----------------------------------------------------------------------------------------------------------------------


def test_plain_moto_shows_the_console_of_2006(plain_moto, client):
    """It has no host keys to pin."""
    ec2 = client("ec2")
    id_ = ec2.run_instances(**PLAIN)["Instances"][0]["InstanceId"]

    assert "BEGIN SSH HOST KEY KEYS" not in ec2.get_console_output(InstanceId=id_)["Output"]


def test_the_console_is_empty_then_shows_the_host_keys(sandbox, ec2, running):
    """The only way to know the key that AWS vouches for, and it takes its time."""
    id_ = running()
    early = ec2.get_console_output(InstanceId=id_, Latest=True).get("Output", "")
    sandbox.advance(30)

    text = ec2.get_console_output(InstanceId=id_, Latest=True)["Output"]

    begin, end = "-----BEGIN SSH HOST KEY KEYS-----", "-----END SSH HOST KEY KEYS-----"
    block = text.split(begin)[1].split(end)[0].split()
    assert ("", "ssh-ed25519") == (early, block[0])
    assert len(block[1]) == 68


def test_without_latest_the_console_is_an_older_snapshot(sandbox, ec2, running):
    """EC2 posts it some time after the boot."""
    id_ = running()
    sandbox.advance(30)
    snapshot = ec2.get_console_output(InstanceId=id_).get("Output", "")
    sandbox.advance(40)

    assert ("", True) == (snapshot, bool(ec2.get_console_output(InstanceId=id_)["Output"]))


def test_an_old_type_has_no_latest_console(sandbox, ec2, running, code_of):
    """Xen types refuse the flag."""
    id_ = running(InstanceType="t2.micro")

    assert "UnsupportedOperation" == code_of(ec2.get_console_output, InstanceId=id_, Latest=True)
