"""Every name inside moto that the layer touches, held by one test: when moto changes, this file says where."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from gpulab.sandbox import moto_bridge, moto_services
from gpulab.sandbox.calls import Call, Refusal
from gpulab.sandbox.wire import read_call, with_params, write_refusal, write_result

ACCOUNT, REGION = "123456789012", "us-east-1"
NOON = datetime(2026, 11, 16, 12, tzinfo=UTC)


@pytest.fixture
def backend(plain_moto):
    """Moto's EC2 of the account."""
    return moto_bridge.ec2(ACCOUNT, REGION)


@pytest.fixture
def launched(backend, client):
    """A plain instance: moto's object."""
    made = client("ec2").run_instances(
        ImageId="ami-12345678", MinCount=1, MaxCount=1, InstanceType="t3.micro", UserData="hello"
    )
    return moto_bridge.instance(backend, made["Instances"][0]["InstanceId"])


def test_moto_follows_our_clock(plain_moto, client):
    """LaunchTime, volume times and token expiries come from one function that modules import by name."""
    moto_bridge.follow_clock(lambda: NOON)
    try:
        made = client("ec2").create_volume(AvailabilityZone="us-east-1a", Size=1)
    finally:
        moto_bridge.follow_clock(None)

    assert NOON == made["CreateTime"]


def test_ids_repeat_with_the_seed(backend, client):
    """A failing rehearsal can be repeated."""
    ids = []
    for _ in range(2):
        moto_bridge.seed_ids(7)
        ids.append(client("ec2").create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"])

    assert ids[0] == ids[1]


def test_the_stubber_is_called_through_its_class(plain_moto, client, monkeypatch):
    """The one place in front of moto where a refusal takes no effect."""
    seen = []
    original = moto_bridge.StubberClass.__call__

    def watch(self, event_name, request, **rest):
        seen.append(event_name)
        return original(self, event_name, request, **rest)

    monkeypatch.setattr(moto_bridge.StubberClass, "__call__", watch)
    client("ec2").describe_vpcs()

    assert ["before-send.ec2.DescribeVpcs"] == seen


def test_states_reasons_and_addresses_are_settable(launched, client):
    """The layer's own states show in moto's answers."""
    moto_bridge.set_state(launched, "shutting-down")
    moto_bridge.set_reasons(launched, "User initiated", "Client.X", "Client.X: because")
    moto_bridge.set_addresses(launched, "10.0.0.9", "192.0.2.9")

    shown = client("ec2").describe_instances()["Reservations"][0]["Instances"][0]
    assert (32, "User initiated", "Client.X", "192.0.2.9", "10.0.0.9") == (
        shown["State"]["Code"],
        shown["StateTransitionReason"],
        shown["StateReason"]["Code"],
        shown["PublicIpAddress"],
        shown["PrivateIpAddress"],
    )


def test_an_instance_has_what_the_layer_reads(launched):
    """Fields of moto's instance that DescribeInstances is built from."""
    names = (
        "image_id", "key_name", "monitoring_state", "architecture", "root_device_name", "ebs_optimized",
        "metadata_options", "private_dns_name", "public_dns_name", "subnet_id", "vpc_id", "nics",
        "security_groups", "get_block_device_mapping", "launch_time", "instance_type",
        "instance_initiated_shutdown_behavior",
    )  # fmt: skip

    assert [] == [name for name in names if not hasattr(launched, name)]
    assert b"hello" == moto_bridge.user_data(launched)
    assert [True] == [hasattr(nic, "public_ip_auto_assign") for nic in launched.nics.values()]


def test_changes_are_carried_out(backend, launched):
    """Stop, start and terminate move addresses and volumes."""
    volumes = len(moto_bridge.volumes(backend))
    for change in ("stop", "start", "terminate"):
        moto_bridge.carry_out(launched, change)

    assert (1, 0) == (volumes, len(moto_bridge.volumes(backend)))


def test_an_instance_is_forgotten_with_its_tags(backend, client, launched):
    """Moto never forgets, and most of its calls search everything it has."""
    ec2 = client("ec2")
    tags = [{"Key": "name", "Value": "week4"}]
    disk = ec2.describe_volumes()["Volumes"][0]["VolumeId"]
    ec2.create_tags(Resources=[launched.id, disk], Tags=tags)
    moto_bridge.carry_out(launched, "terminate")
    reservation = ec2.describe_instances()["Reservations"][0]["ReservationId"]

    moto_bridge.forget(backend, reservation, launched.id)

    assert (None, []) == (moto_bridge.instance(backend, launched.id), ec2.describe_tags()["Tags"])


def test_the_network_of_an_account(backend):
    """Default subnets, groups, zones, and the gateway that moto leaves out."""
    subnet = moto_bridge.default_subnet(backend, "us-east-1b")
    moto_bridge.add_gateway(backend)
    moto_bridge.add_gateway(backend)

    assert ("us-east-1b", "") == (
        moto_bridge.zone_of_subnet(backend, subnet),
        moto_bridge.zone_of_subnet(backend, "subnet-0"),
    )
    assert ["default"] == [
        moto_bridge.groups(backend)[moto_bridge.default_group(backend, subnet)].name
    ]
    assert [f"us-east-1{letter}" for letter in "abcdef"] == [
        n for n, _ in moto_bridge.zones(REGION)
    ]
    assert 1 == len(backend.internet_gateways)


def test_rules_and_sources_of_groups(backend, client):
    """Ways in by range, and by other groups."""
    ec2 = client("ec2")
    first, second = (
        ec2.create_security_group(GroupName=name, Description=name)["GroupId"] for name in "ab"
    )
    ec2.authorize_security_group_ingress(
        GroupId=first,
        IpPermissions=[
            {
                "IpProtocol": "tcp",
                "FromPort": 22,
                "ToPort": 22,
                "IpRanges": [{"CidrIp": "192.0.2.1/32"}],
            },
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": second}]},
        ],
    )

    group = moto_bridge.groups(backend)[first]
    assert [("tcp", 22, 22, "192.0.2.1/32")] == list(moto_bridge.ingress_of(group))
    assert second in moto_bridge.sources_of(group)


def test_key_pairs_and_tags(backend, client):
    """The public half as a line, and tags of anything by id."""
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJOD4C4b8KFmEbDIoHOBuKPKRrYmxWdnRBJLXXdzZ3Vi"
    client("ec2").import_key_pair(KeyName="lab", PublicKeyMaterial=line.encode())
    moto_bridge.tag(backend, "sir-12345678", {"a": "b"})

    assert (line, True, "", {"a": "b"}) == (
        moto_bridge.public_key(backend, "lab"),
        moto_bridge.has_key_pair(backend, "lab"),
        moto_bridge.public_key(backend, "nobody"),
        moto_bridge.tags_of(backend, "sir-12345678"),
    )


def test_the_catalogue_of_types():
    """g4dn is there and has zones; p2 is gone."""
    assert 4 == moto_bridge.instance_type("g4dn.xlarge")["VCpuInfo"]["DefaultVCpus"]
    assert 5 == len(moto_bridge.offered_in("g4dn.xlarge", REGION))
    assert (None, frozenset()) == (
        moto_bridge.instance_type("p2.xlarge"),
        moto_bridge.offered_in("p2.xlarge", REGION),
    )


def test_images_can_be_added(backend, client):
    """With an owner, a size and a date of their own."""
    moto_bridge.add_image(
        backend,
        "ami-0123456789abcdef0",
        root_gib=45,
        created_at=NOON,
        name="lab",
        description="",
        owner_id="898082745236",
        architecture="x86_64",
        root_device_name="/dev/sda1",
        region_name="us-east-1a",
    )

    shown = client("ec2").describe_images(Owners=["898082745236"])["Images"][0]
    assert (45, "2026-11-16T12:00:00.000Z", True) == (
        shown["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"],
        shown["CreationDate"],
        shown["Public"],
    )
    assert moto_bridge.image(backend, "ami-0") is None


def test_templates_are_read(backend, client):
    """Their data, or EC2's error."""
    client("ec2").create_launch_template(
        LaunchTemplateName="lab", LaunchTemplateData={"InstanceType": "g5.xlarge"}
    )

    data = moto_bridge.template_data(backend, {"LaunchTemplateName": "lab"})

    assert {"InstanceType": "g5.xlarge"} == data
    with pytest.raises(Refusal, match="InvalidLaunchTemplateName"):
        moto_bridge.template_data(backend, {"LaunchTemplateName": "nobody"})


def test_a_role_is_made_once_and_given_its_trust_again(plain_moto):
    """A student uploads a template twice."""
    first = moto_services.put_role(ACCOUNT, "course", '{"a": 1}', {"p": '{"b": 1}'})
    second = moto_services.put_role(ACCOUNT, "course", '{"a": 2}', {"q": '{"b": 2}'})

    assert f"arn:aws:iam::{ACCOUNT}:role/course" == first == second
    assert ('{"a": 2}', [{"b": 2}]) == (
        moto_services.trust_policy(ACCOUNT, first),
        moto_services.role_policies(ACCOUNT, first),
    )


def test_a_stacks_bucket_and_profile_are_there_once(plain_moto, client):
    """What a stack makes for the kept work; uploaded twice, nothing is refused and nothing is lost."""
    tag = {"Key": "gpulab:bucket", "Value": "kept-work"}
    for _ in range(2):
        moto_services.put_bucket(ACCOUNT, "kept-work", "eu-west-1", is_versioned=True)
        moto_services.put_role(ACCOUNT, "work", "{}", {}, [tag])
        moto_services.put_profile(ACCOUNT, "work", "work")

    s3, role = client("s3"), client("iam").get_role(RoleName="work")["Role"]
    where = s3.get_bucket_location(Bucket="kept-work")["LocationConstraint"]
    is_versioned = s3.get_bucket_versioning(Bucket="kept-work")["Status"]
    assert ("eu-west-1", "Enabled", [tag]) == (where, is_versioned, role["Tags"])
    assert "work" == moto_services.role_of_profile(ACCOUNT, "work")[2]


def test_roles_profiles_and_keys_of_iam(plain_moto, client):
    """What a launch with a role and a schedule are checked against."""
    iam = client("iam")
    statement = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    arn = iam.create_role(RoleName="r", AssumeRolePolicyDocument=document)["Role"]["Arn"]
    iam.put_role_policy(RoleName="r", PolicyName="p", PolicyDocument=document)
    iam.create_instance_profile(InstanceProfileName="i")
    iam.add_role_to_instance_profile(InstanceProfileName="i", RoleName="r")
    iam.create_user(UserName="u")
    key = iam.create_access_key(UserName="u")["AccessKey"]["AccessKeyId"]
    moto_services.create_spot_role(ACCOUNT)

    found = moto_services.role_of_profile(ACCOUNT, "i")
    assert found is not None
    assert ("r", [json.loads(document)], ACCOUNT) == (
        found[2],
        moto_services.role_policies(ACCOUNT, arn),
        moto_services.account_of_key(key),
    )
    assert (iam.get_role(RoleName="r")["Role"]["RoleId"], "") == (
        moto_services.role_id(ACCOUNT, "r"),
        moto_services.role_id(ACCOUNT, "nobody"),
    )
    assert (True, None, None, None) == (
        moto_services.has_role(ACCOUNT, "AWSServiceRoleForEC2Spot"),
        moto_services.account_of_key("AKIANOBODYSKEY000000"),
        moto_services.role_of_profile(ACCOUNT, "nobody"),
        moto_services.trust_policy(ACCOUNT, "arn:aws:iam::123456789012:role/nobody"),
    )


def test_budgets_and_attached_policies_are_read_and_changed(plain_moto, client):
    """What a budget action changes, and what a caller is denied by."""
    iam, budgets = client("iam"), client("budgets")
    statement = {"Effect": "Deny", "Action": "ec2:RunInstances", "Resource": "*"}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    arn = iam.create_policy(PolicyName="p", PolicyDocument=json.dumps(document))["Policy"]["Arn"]
    notice = {"NotificationType": "ACTUAL", "ComparisonOperator": "GREATER_THAN", "Threshold": 50.0}
    told = [{"SubscriptionType": "EMAIL", "Address": "ann@example.org"}]
    limit = {"Amount": "10", "Unit": "USD"}
    budgets.create_budget(
        AccountId=ACCOUNT,
        Budget={
            "BudgetName": "b",
            "BudgetLimit": limit,
            "TimeUnit": "ANNUALLY",
            "BudgetType": "COST",
        },
        NotificationsWithSubscribers=[{"Notification": notice, "Subscribers": told}],
    )
    moto_services.ensure_user(ACCOUNT, "ann")
    user = f"arn:aws:iam::{ACCOUNT}:user/ann"

    attached = [
        moto_services.attach_policy(ACCOUNT, arn, kind="User", name=name) for name in ("ann", "bo")
    ]

    found = moto_services.budget(ACCOUNT, "b")
    assert found is not None
    assert (limit, None) == (found["BudgetLimit"], moto_services.budget(ACCOUNT, "c"))
    assert told == moto_services.subscribers(ACCOUNT, "b", notice)
    assert moto_services.subscribers(ACCOUNT, "b", {**notice, "Threshold": 80.0}) is None
    assert ([True, False], [document], []) == (
        attached,
        moto_services.attached_policies(ACCOUNT, user),
        moto_services.attached_policies(ACCOUNT, f"arn:aws:iam::{ACCOUNT}:user/bo"),
    )


def test_a_stacks_policy_and_budget_are_made_and_made_again(plain_moto, client):
    """A template is applied twice, and what it says last is in force."""
    arn = f"arn:aws:iam::{ACCOUNT}:policy/p"
    statement = {"Effect": "Deny", "Resource": "*"}
    documents = [
        {"Version": "2012-10-17", "Statement": [{**statement, "Action": f"ec2:{verb}Instances"}]}
        for verb in ("Run", "Start")
    ]
    notice = {"NotificationType": "ACTUAL", "ComparisonOperator": "GREATER_THAN", "Threshold": 50}
    told = [{"SubscriptionType": "EMAIL", "Address": "ann@example.org"}]
    kind = {"BudgetName": "b", "TimeUnit": "ANNUALLY", "BudgetType": "COST"}
    moto_services.ensure_user(ACCOUNT, "ann")

    for document, amount in zip(documents, ("10", "20"), strict=True):
        moto_services.put_policy(ACCOUNT, "p", json.dumps(document))
        limit = {"Amount": amount, "Unit": "USD"}
        alerts = [{"Notification": notice, "Subscribers": told}]
        moto_services.put_budget(ACCOUNT, {**kind, "BudgetLimit": limit}, alerts)

    moto_services.attach_policy(ACCOUNT, arn, kind="User", name="ann")
    user = f"arn:aws:iam::{ACCOUNT}:user/ann"
    assert [documents[1]] == moto_services.attached_policies(ACCOUNT, user)
    found = client("budgets").describe_budgets(AccountId=ACCOUNT)["Budgets"]
    assert [{"Amount": "20", "Unit": "USD"}] == [b["BudgetLimit"] for b in found]
    assert told == moto_services.subscribers(ACCOUNT, "b", notice)


def test_schedules_are_read_and_deleted(plain_moto, client):
    """The fields a firing schedule is made of."""
    client("scheduler").create_schedule(
        Name="s",
        ScheduleExpression="at(2027-01-01T00:00:00)",
        FlexibleTimeWindow={"Mode": "OFF"},
        ActionAfterCompletion="DELETE",
        Target={
            "Arn": "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances",
            "RoleArn": "arn:aws:iam::1:role/r",
        },
    )

    found = next(moto_services.schedules(ACCOUNT, REGION))
    fields = (found.name, found.schedule_expression, found.state, found.action_after_completion)
    moto_services.delete_schedule(ACCOUNT, REGION, "default", "s")

    assert ("s", "at(2027-01-01T00:00:00)", "ENABLED", "DELETE") == fields
    assert [] == list(moto_services.schedules(ACCOUNT, REGION))


# -- the wire -----------------------------------------------------------------------------------------------------------------


def a_call(body: bytes, **changes) -> Call:
    """An EC2 call as botocore sends it."""
    authorization = "AWS4-HMAC-SHA256 Credential=AKIA/20261116/eu-west-1/ec2/aws4_request, SignedHeaders=host, Signature=0"
    return read_call(
        "POST", "http://127.0.0.1:5000/", {"Authorization": authorization, **changes}, body
    )


def test_a_call_is_understood_by_its_signature_and_form():
    """Moto's parser reads the form by botocore's model."""
    call = a_call(
        b"Action=RunInstances&MinCount=1&BlockDeviceMapping.1.Ebs.VolumeSize=8&SecurityGroupId.1=sg-1"
    )

    assert ("ec2", "eu-west-1", "RunInstances", "AKIA") == (
        call.service,
        call.region,
        call.operation,
        call.access_key,
    )
    assert {
        "MinCount": 1,
        "BlockDeviceMappings": [{"Ebs": {"VolumeSize": 8}}],
        "SecurityGroupIds": ["sg-1"],
    } == dict(call.params)


def test_parameters_can_be_written_again():
    """What the layer decides (a zone, a size) reaches moto as if the caller had said it."""
    call = a_call(b"Action=RunInstances&MinCount=1")

    changed = with_params(call, {"MinCount": 2, "SecurityGroupIds": ["sg-1"], "ImageId": "ami-1"})

    again = a_call(changed.body)
    assert {"MinCount": 2, "SecurityGroupIds": ["sg-1"], "ImageId": "ami-1"} == dict(again.params)


def test_results_and_refusals_are_written():
    """In EC2's own XML."""
    call = a_call(b"Action=DescribeInstances")

    result = write_result(call, {"Reservations": [{"ReservationId": "r-1"}]})
    refusal = write_refusal(call, Refusal("InsufficientInstanceCapacity", "a < b"))

    assert (200, 500) == (result.status, refusal.status)
    assert (
        b"<reservationSet><item><reservationId>r-1</reservationId></item></reservationSet>"
        in result.body
    )
    assert b"<Code>InsufficientInstanceCapacity</Code><Message>a &lt; b</Message>" in refusal.body
