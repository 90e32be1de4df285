"""R18, R19 and schedules: images, the default VPC, volumes, and what fires by itself."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from gpulab.sandbox import Sandbox

DEEP_LEARNING = (
    "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
)

# -- R18 ----------------------------------------------------------------------------------------------------------------------


def test_plain_moto_has_no_such_parameter(plain_moto, client, code_of):
    """Nor the images behind it."""
    assert "ParameterNotFound" == code_of(client("ssm").get_parameter, Name=DEEP_LEARNING)


def test_the_public_name_leads_to_the_image(sandbox, client):
    """Owner, size of the root snapshot and driver are what a launch must look at."""
    id_ = client("ssm").get_parameter(Name=DEEP_LEARNING)["Parameter"]["Value"]

    image = client("ec2").describe_images(ImageIds=[id_])["Images"][0]

    assert ("898082745236", 65, "x86_64", "available") == (
        image["OwnerId"],
        image["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"],
        image["Architecture"],
        image["State"],
    )
    assert image["Name"].startswith("Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04)")
    assert "NVIDIA driver" in image["Description"]


def test_each_region_has_ids_of_its_own(sandbox, client, code_of):
    """An id copied from another Region does not launch."""
    here, there = (
        client("ssm", region_name=region).get_parameter(Name=DEEP_LEARNING)["Parameter"]["Value"]
        for region in ("us-east-1", "eu-west-1")
    )

    code = code_of(client("ec2").describe_images, ImageIds=[there])

    assert (False, "InvalidAMIID.NotFound") == (here == there, code)


def test_an_image_may_be_named_by_its_parameter(sandbox, ec2, a_launch):
    """`resolve:ssm:` saves a call."""
    ec2.run_instances(**a_launch(ImageId=f"resolve:ssm:{DEEP_LEARNING}"))

    expected = sandbox.images.parameters("us-east-1")[DEEP_LEARNING][0]
    assert [expected] == [i["ImageId"] for i in sandbox.instances()]


def test_a_root_volume_takes_the_size_of_its_image(sandbox, ec2, running):
    """65 GiB for a driver image: it is most of what a stopped lab costs."""
    running(ImageId=sandbox.images.parameters("us-east-1")[DEEP_LEARNING][0])

    assert [65] == [volume["Size"] for volume in ec2.describe_volumes()["Volumes"]]


def test_parameters_are_listed_by_path(sandbox, client):
    """Ten at most in a page."""
    pages = client("ssm").get_paginator("get_parameters_by_path")

    found = [
        parameter["Name"]
        for page in pages.paginate(
            Path="/aws/service/canonical/ubuntu/server/24.04", Recursive=True
        )
        for parameter in page["Parameters"]
    ]

    assert 4 == len(found)
    assert all(name.endswith("/hvm/ebs-gp3/ami-id") for name in found)


def test_plain_moto_has_all_types_in_one_page(plain_moto, client):
    """Code that forgets to page would pass."""
    assert "NextToken" not in client("ec2").describe_instance_types(MaxResults=5)


def test_types_come_in_pages_of_100(sandbox, ec2):
    """And filters work across them."""
    first = ec2.describe_instance_types()
    pages = ec2.get_paginator("describe_instance_types").paginate(
        Filters=[{"Name": "instance-type", "Values": ["g4dn.*", "p2.*"]}]
    )

    names = sorted(t["InstanceType"] for page in pages for t in page["InstanceTypes"])
    assert (100, True) == (len(first["InstanceTypes"]), "NextToken" in first)
    assert (7, "g4dn.12xlarge") == (len(names), names[0])


# -- R19 ----------------------------------------------------------------------------------------------------------------------


def test_plain_moto_deletes_a_group_in_use(plain_moto, client, code_of):
    """And its default VPC leads nowhere."""
    ec2 = client("ec2")
    group = ec2.create_security_group(GroupName="lab", Description="lab")["GroupId"]
    ec2.run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1, SecurityGroupIds=[group])

    assert "ok" == code_of(ec2.delete_security_group, GroupId=group)
    assert [] == ec2.describe_internet_gateways()["InternetGateways"]


def test_the_default_vpc_has_a_way_out(ec2):
    """An internet gateway, and a route to it."""
    gateway = ec2.describe_internet_gateways()["InternetGateways"][0]
    routes = ec2.describe_route_tables()["RouteTables"][0]["Routes"]

    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    assert [vpc] == [a["VpcId"] for a in gateway["Attachments"]]
    assert gateway["InternetGatewayId"] in [route.get("GatewayId") for route in routes]


def test_a_group_is_deleted_when_its_instance_has_ended(sandbox, ec2, running, code_of):
    """Clean-up has to wait for `terminated`."""
    group = ec2.create_security_group(GroupName="lab", Description="lab")["GroupId"]
    sandbox.advance(2)
    id_ = running(SecurityGroupIds=[group])
    codes = [code_of(ec2.delete_security_group, GroupId=group)]
    ec2.terminate_instances(InstanceIds=[id_])
    codes.append(code_of(ec2.delete_security_group, GroupId=group))

    sandbox.advance(30)

    codes.append(code_of(ec2.delete_security_group, GroupId=group))
    assert ["DependencyViolation", "DependencyViolation", "ok"] == codes


def test_a_range_is_kept_as_ec2_keeps_it(sandbox, ec2):
    """Comparing what was asked with what is there must not see a difference for ever."""
    group = ec2.create_security_group(GroupName="lab", Description="lab")["GroupId"]
    sandbox.advance(2)

    ec2.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[
            {
                "IpProtocol": "tcp",
                "FromPort": 22,
                "ToPort": 22,
                "IpRanges": [{"CidrIp": "192.0.2.9/24"}],
            }
        ],
    )

    found = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
    assert "192.0.2.0/24" == found["IpPermissions"][0]["IpRanges"][0]["CidrIp"]


def test_a_volume_stays_in_its_zone(ec2, running, code_of):
    """A data disk binds a lab to one zone."""
    id_ = running()
    far = ec2.create_volume(AvailabilityZone="us-east-1b", Size=10)["VolumeId"]
    near = ec2.create_volume(AvailabilityZone="us-east-1a", Size=10)["VolumeId"]
    attach = {"InstanceId": id_, "Device": "/dev/sdf"}

    codes = [
        code_of(ec2.attach_volume, VolumeId=far, **attach),
        code_of(ec2.attach_volume, VolumeId=near, **attach),
        code_of(ec2.attach_volume, VolumeId=near, **attach),
        code_of(ec2.delete_volume, VolumeId=near),
        code_of(ec2.detach_volume, VolumeId=near),
        code_of(ec2.delete_volume, VolumeId=near),
    ]

    assert ["InvalidVolume.ZoneMismatch", "ok", "VolumeInUse", "VolumeInUse", "ok", "ok"] == codes


def test_snapshots_of_public_images_are_not_ones_own(sandbox, ec2):
    """A sweep that takes them for its own would offer to delete Canonical's."""
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"]
    own = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]

    found = ec2.describe_snapshots(OwnerIds=["self"])["Snapshots"]

    assert [own] == [snapshot["SnapshotId"] for snapshot in found]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_launch_says_whether_it_wants_a_public_address(sandbox, ec2, running, wanted):
    """Without one there is nothing to pay for it, and no way in."""
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    running(
        Placement=None,
        NetworkInterfaces=[
            {"DeviceIndex": 0, "SubnetId": subnet, "AssociatePublicIpAddress": wanted}
        ],
    )
    sandbox.advance(3600)

    has_one = "PublicIpAddress" in {k for k, v in sandbox.instances()[0].items() if v}
    assert (wanted, wanted) == (has_one, sandbox.bill().of_kind("ipv4") > 0)


def test_five_elastic_addresses_and_no_more(ec2, code_of):
    """The quota of a new account."""
    codes = [code_of(ec2.allocate_address, Domain="vpc") for _ in range(6)]

    assert ["ok"] * 5 + ["AddressLimitExceeded"] == codes


def test_a_first_day_account_launches_no_gpu(client):
    """The commonest first failure: a quota of 0, and no spot role yet."""
    with Sandbox(ready=False) as sandbox:
        image = sandbox.images.parameters("us-east-1")[DEEP_LEARNING][0]

        with pytest.raises(client("ec2").exceptions.ClientError, match="Max spot instance count"):
            client("ec2").run_instances(
                ImageId=image,
                InstanceType="g4dn.xlarge",
                MinCount=1,
                MaxCount=1,
                InstanceMarketOptions={"MarketType": "spot"},
            )


# -- schedules ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def role(sandbox, client):
    """Make a role for the scheduler with these actions; returns its ARN once it can be assumed."""
    iam = client("iam")

    def make(*actions, service="scheduler.amazonaws.com", wait_s=10):
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
            ],
        }
        made = iam.create_role(RoleName="end", AssumeRolePolicyDocument=json.dumps(trust))
        policy = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}],
        }
        iam.put_role_policy(RoleName="end", PolicyName="end", PolicyDocument=json.dumps(policy))
        sandbox.advance(wait_s)
        return made["Role"]["Arn"]

    return make


def schedule(client, sandbox, role_arn, id_, *, after=timedelta(hours=1)):
    """The guard that gpulab arms: terminate at a time, then delete the schedule."""
    at = (sandbox.now() + after).strftime("%Y-%m-%dT%H:%M:%S")
    return client("scheduler").create_schedule(
        Name="end-lab",
        ScheduleExpression=f"at({at})",
        FlexibleTimeWindow={"Mode": "OFF"},
        ActionAfterCompletion="DELETE",
        Target={
            "Arn": "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances",
            "RoleArn": role_arn,
            "Input": json.dumps({"InstanceIds": [id_]}),
        },
    )


def test_plain_motos_schedules_never_fire(plain_moto, client):
    """The most important guard against a forgotten instance could not be tested."""
    scheduler = client("scheduler")
    scheduler.create_schedule(
        Name="end",
        ScheduleExpression="at(2020-01-01T00:00:00)",
        FlexibleTimeWindow={"Mode": "OFF"},
        ActionAfterCompletion="DELETE",
        Target={
            "Arn": "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances",
            "RoleArn": "arn:aws:iam::1:role/x",
        },
    )

    assert ["end"] == [s["Name"] for s in scheduler.list_schedules()["Schedules"]]


def test_a_schedule_ends_its_instance_and_itself(sandbox, client, running, role):
    """With the laptop shut, at the minute."""
    id_ = running()
    schedule(client, sandbox, role("ec2:TerminateInstances"), id_)
    sandbox.advance(3599)
    before = sandbox.instances()[0]["State"]["Name"]

    sandbox.advance(1)

    assert ("running", "shutting-down", []) == (
        before,
        sandbox.instances()[0]["State"]["Name"],
        client("scheduler").list_schedules()["Schedules"],
    )


@pytest.mark.parametrize("outage", ["503", "no connection", "the answer is lost"])
def test_a_schedule_outlasts_an_outage(sandbox, client, running, role, outage):
    """The laptop may be closed for good: an outage of minutes must not be why an instance runs for days."""
    id_ = running()
    schedule(client, sandbox, role("ec2:TerminateInstances"), id_)
    begin = {
        "503": lambda: sandbox.refuse("*", "ServiceUnavailable"),
        "no connection": lambda: sandbox.drop_request("*", times=None),
        "the answer is lost": lambda: sandbox.lose_reply("*", times=None),
    }
    sandbox.advance(3500)
    fault = begin[outage]()
    sandbox.advance(300)
    fault.times = 0

    sandbox.advance(200)

    assert ["terminated"] == [i["State"]["Name"] for i in sandbox.instances()]


def test_a_schedule_that_was_deleted_does_nothing(sandbox, client, running, role):
    """`stop` takes the guard away again."""
    schedule(client, sandbox, role("ec2:TerminateInstances"), running())
    client("scheduler").delete_schedule(Name="end-lab")

    sandbox.advance(2 * 3600)

    assert "running" == sandbox.instances()[0]["State"]["Name"]


def test_an_extended_schedule_fires_at_its_new_time(sandbox, client, running, role):
    """`extend` moves the guard."""
    arn = role("ec2:TerminateInstances")
    id_ = running()
    schedule(client, sandbox, arn, id_)
    at = (sandbox.now() + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S")
    client("scheduler").update_schedule(
        Name="end-lab",
        ScheduleExpression=f"at({at})",
        FlexibleTimeWindow={"Mode": "OFF"},
        ActionAfterCompletion="DELETE",
        Target={
            "Arn": "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances",
            "RoleArn": arn,
            "Input": json.dumps({"InstanceIds": [id_]}),
        },
    )
    states = []
    for _ in range(2):
        sandbox.advance(3600)
        states.append(sandbox.instances()[0]["State"]["Name"])

    assert ["running", "shutting-down"] == states


def test_a_schedule_that_was_armed_twice_for_one_moment_fires_once(sandbox, client, running, role):
    """`up`, interrupted and repeated, arms what is armed already; the soak's clock stopped at that."""
    arn, id_ = role("ec2:TerminateInstances"), running()
    schedule(client, sandbox, arn, id_)
    client("scheduler").delete_schedule(Name="end-lab")
    schedule(client, sandbox, arn, id_)

    sandbox.advance(3600)

    assert ["ok"] == [c.outcome for c in sandbox.calls.of("TerminateInstances")]
    assert [] == client("scheduler").list_schedules()["Schedules"]


def test_a_role_without_the_right_fails_in_silence(sandbox, client, running, role):
    """AWS tells nobody; the log of the sandbox does."""
    schedule(client, sandbox, role("s3:GetObject"), running())

    sandbox.advance(3600)

    assert "running" == sandbox.instances()[0]["State"]["Name"]
    assert ["AccessDenied"] == [c.outcome for c in sandbox.calls.of("TerminateInstances")]


def test_a_role_that_was_just_made_cannot_be_assumed_yet(sandbox, client, running, role, code_of):
    """The first lab in a new account arms its ends seconds after it made the role for them."""
    id_, arn = running(), role("ec2:TerminateInstances", wait_s=9)

    too_early = code_of(schedule, client=client, sandbox=sandbox, role_arn=arn, id_=id_)
    sandbox.advance(1)
    schedule(client, sandbox, arn, id_)

    assert "ValidationException" == too_early
    assert ["end-lab"] == [s["Name"] for s in client("scheduler").list_schedules()["Schedules"]]


def test_a_role_that_the_scheduler_may_not_assume_is_refused(
    sandbox, client, running, role, code_of
):
    """At creation, so a guard that cannot work is known at once."""
    arn = role("ec2:TerminateInstances", service="ec2.amazonaws.com")

    code = code_of(schedule, client=client, sandbox=sandbox, role_arn=arn, id_=running())

    assert "ValidationException" == code
