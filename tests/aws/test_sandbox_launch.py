"""R1, R7, R8, R9, R12 and R3b: what EC2 says to a launch, where moto says yes to everything."""

from __future__ import annotations

import pytest

PLAIN = {"ImageId": "ami-12345678", "InstanceType": "g4dn.xlarge", "MinCount": 1, "MaxCount": 1}
SPOT = {"MarketType": "spot"}


def spot(**options):
    """Spot market options."""
    return {"MarketType": "spot", "SpotOptions": options}


# -- R1 -----------------------------------------------------------------------------------------------------------------------


def test_plain_moto_launches_twice_for_one_token(plain_moto, client):
    """This is why the layer keeps tokens: a lost reply would cost a second instance."""
    ec2 = client("ec2")

    ids = {ec2.run_instances(**PLAIN, ClientToken="t")["Instances"][0]["InstanceId"] for _ in "ab"}

    assert 2 == len(ids)


def test_the_same_token_and_parameters_start_nothing_new(sandbox, ec2, a_launch):
    """A launch whose answer was lost is asked again; it must be the same instance, in its present state."""
    first = ec2.run_instances(**a_launch(ClientToken="t"))["Instances"][0]
    sandbox.advance(10)

    again = ec2.run_instances(**a_launch(ClientToken="t"))["Instances"][0]

    assert (first["InstanceId"], "pending", "running") == (
        again["InstanceId"],
        first["State"]["Name"],
        again["State"]["Name"],
    )
    assert 1 == len(sandbox.instances())


def test_the_same_token_with_other_parameters_is_refused(ec2, a_launch, code_of):
    """AWS compares the parameters, so a retry must send the same bytes."""
    ec2.run_instances(**a_launch(ClientToken="t"))

    code = code_of(ec2.run_instances, **a_launch(ClientToken="t", InstanceType="g5.xlarge"))

    assert "IdempotentParameterMismatch" == code


def test_the_same_token_in_another_zone_starts_another_instance(sandbox, ec2, a_launch):
    """The zonal rule: failing over with an old token launches twice, so every attempt needs its own."""
    ec2.run_instances(**a_launch(ClientToken="t"))

    ec2.run_instances(**a_launch(ClientToken="t", Placement={"AvailabilityZone": "us-east-1b"}))

    assert ["us-east-1a", "us-east-1b"] == [
        i["Placement"]["AvailabilityZone"] for i in sandbox.instances()
    ]


def test_without_a_zone_a_token_counts_for_the_region(sandbox, ec2, a_launch):
    """EC2 chooses the zone then, and must not choose twice."""
    for _ in range(2):
        ec2.run_instances(**a_launch(ClientToken="t", Placement=None))

    assert 1 == len(sandbox.instances())


def test_the_token_of_a_terminated_instance_is_refused(sandbox, ec2, a_launch, code_of, running):
    """Since 2025 AWS says so instead of launching anew (boto/boto3#4406)."""
    id_ = running(ClientToken="t")
    ec2.terminate_instances(InstanceIds=[id_])

    code = code_of(ec2.run_instances, **a_launch(ClientToken="t"))

    assert "IdempotentInstanceTerminated" == code


def test_a_token_makes_one_volume(sandbox, ec2):
    """CreateVolume is idempotent as well."""
    made = [
        ec2.create_volume(AvailabilityZone="us-east-1a", Size=10, ClientToken="v")["VolumeId"]
        for _ in "ab"
    ]

    assert made[0] == made[1]


# -- R7 -----------------------------------------------------------------------------------------------------------------------


def test_a_full_zone_names_the_zones_that_would_do(sandbox, ec2, a_launch):
    """The message is what a failover may parse; the status is that of a server error."""
    sandbox.set_capacity("g4dn.xlarge", "us-east-1a", 0)

    with pytest.raises(ec2.exceptions.ClientError) as caught:
        ec2.run_instances(**a_launch())

    error = caught.value.response
    assert ("InsufficientInstanceCapacity", 500) == (
        error["Error"]["Code"],
        error["ResponseMetadata"]["HTTPStatusCode"],
    )
    assert "choosing us-east-1b, us-east-1c, us-east-1d, us-east-1f" in error["Error"]["Message"]


def test_a_slot_comes_back_when_its_instance_ends(sandbox, ec2, a_launch, code_of, running):
    """Capacity is a count of instances, not a switch."""
    sandbox.set_capacity("g4dn.xlarge", "us-east-1a", 1)
    id_ = running()

    full = code_of(ec2.run_instances, **a_launch())
    ec2.terminate_instances(InstanceIds=[id_])
    sandbox.advance(60)
    free = code_of(ec2.run_instances, **a_launch())

    assert ("InsufficientInstanceCapacity", "ok") == (full, free)


def test_a_zone_without_the_type_says_unsupported(ec2, a_launch, code_of):
    """us-east-1e has no g4dn; no waiting will change that."""
    code = code_of(ec2.run_instances, **a_launch(Placement={"AvailabilityZone": "us-east-1e"}))

    assert "Unsupported" == code


def test_ec2_chooses_a_zone_with_room(sandbox, ec2, a_launch):
    """A launch that names no zone fails only when every zone is full."""
    for zone in "abcd":
        sandbox.set_capacity("g4dn.xlarge", f"us-east-1{zone}", 0)

    launched = ec2.run_instances(**a_launch(Placement=None))

    assert "us-east-1f" == launched["Instances"][0]["Placement"]["AvailabilityZone"]


def a_fleet(ec2, image, total=1, zones=("us-east-1a", "us-east-1b"), **options):
    """Create an instant spot fleet over zones."""
    ec2.create_launch_template(
        LaunchTemplateName="lab",
        LaunchTemplateData={"ImageId": image, "InstanceType": "g4dn.xlarge"},
    )
    return ec2.create_fleet(
        Type="instant",
        TargetCapacitySpecification={
            "TotalTargetCapacity": total,
            "DefaultTargetCapacityType": "spot",
        },
        SpotOptions=options,
        LaunchTemplateConfigs=[
            {
                "LaunchTemplateSpecification": {"LaunchTemplateName": "lab", "Version": "$Latest"},
                "Overrides": [
                    {"AvailabilityZone": zone, "Priority": n} for n, zone in enumerate(zones)
                ],
            }
        ],
    )


def test_plain_moto_fills_every_fleet(plain_moto, client):
    """Moto takes the first override and never has an error to report."""
    fleet = a_fleet(client("ec2"), "ami-12345678", total=3)

    assert ([], 3) == (
        fleet.get("Errors", []),
        sum(len(entry["InstanceIds"]) for entry in fleet["Instances"]),
    )


def test_a_fleet_reports_what_it_could_not_launch(sandbox, ec2, a_launch):
    """Partial results with their reasons are what a fleet launch must read."""
    sandbox.set_capacity("g4dn.xlarge", "us-east-1a", 0)

    fleet = a_fleet(ec2, a_launch()["ImageId"], AllocationStrategy="capacity-optimized-prioritized")

    assert ["InsufficientInstanceCapacity"] == [error["ErrorCode"] for error in fleet["Errors"]]
    assert ["us-east-1b"] == [i["Placement"]["AvailabilityZone"] for i in sandbox.instances()]


def test_a_fleet_over_the_quota_is_partial(sandbox, ec2, a_launch):
    """16 vCPUs are four g4dn.xlarge; the fifth is an error in the list, not an exception."""
    sandbox.set_quota("L-3819A6DF", "us-east-1", 16)

    fleet = a_fleet(ec2, a_launch()["ImageId"], total=5)

    assert (4, {"MaxSpotInstanceCountExceeded"}) == (
        len(sandbox.instances()),
        {error["ErrorCode"] for error in fleet["Errors"]},
    )


def test_the_cheapest_pool_comes_first(sandbox, ec2, a_launch):
    """`lowest-price` is EC2's default strategy."""
    sandbox.set_price("g4dn.xlarge", "us-east-1a", "0.30")
    sandbox.set_price("g4dn.xlarge", "us-east-1b", "0.10")

    a_fleet(ec2, a_launch()["ImageId"])

    assert ["us-east-1b"] == [i["Placement"]["AvailabilityZone"] for i in sandbox.instances()]


# -- R8 -----------------------------------------------------------------------------------------------------------------------


def test_plain_moto_knows_no_quota(plain_moto, client, code_of):
    """`doctor` could never be tested against it."""
    code = code_of(
        client("service-quotas").get_service_quota, ServiceCode="ec2", QuotaCode="L-3819A6DF"
    )

    assert "NoSuchResourceException" == code


@pytest.mark.parametrize(
    ("market", "code", "error"),
    [
        (SPOT, "L-3819A6DF", "MaxSpotInstanceCountExceeded"),
        (None, "L-DB2E81BA", "VcpuLimitExceeded"),
    ],
)
def test_a_launch_over_the_quota_is_refused(sandbox, ec2, a_launch, code_of, market, code, error):
    """Spot and on-demand have quotas of their own, and errors of their own."""
    sandbox.set_quota(code, "us-east-1", 4)

    codes = [code_of(ec2.run_instances, **a_launch(InstanceMarketOptions=market)) for _ in "ab"]

    assert ["ok", error] == codes


def test_a_terminated_instance_counts_a_while_longer(sandbox, ec2, a_launch, code_of, running):
    """Launching at once after a termination fails on AWS too."""
    sandbox.set_quota("L-3819A6DF", "us-east-1", 4)
    id_ = running()
    ec2.terminate_instances(InstanceIds=[id_])
    sandbox.advance(40)

    codes = []
    for _ in "ab":
        codes.append(code_of(ec2.run_instances, **a_launch()))
        sandbox.advance(60)

    assert ["MaxSpotInstanceCountExceeded", "ok"] == codes


def test_a_request_for_quota_is_pending_until_decided(sandbox, client):
    """Approval takes AWS minutes to days, and closing a case is not approval."""
    quotas = client("service-quotas")
    ask = {"ServiceCode": "ec2", "QuotaCode": "L-3819A6DF"}
    asked = quotas.request_service_quota_increase(**ask, DesiredValue=128)["RequestedQuota"]
    values = [quotas.get_service_quota(**ask)["Quota"]["Value"]]

    sandbox.decide_quota("L-3819A6DF", "APPROVED")

    values.append(quotas.get_service_quota(**ask)["Quota"]["Value"])
    history = quotas.list_requested_service_quota_change_history(ServiceCode="ec2")
    assert ("PENDING", [64.0, 128.0], ["APPROVED"]) == (
        asked["Status"],
        values,
        [entry["Status"] for entry in history["RequestedQuotas"]],
    )


# -- R9, R12, R3b -------------------------------------------------------------------------------------------------------------

REFUSED = [
    ({"UserData": "x" * 16_385}, "InvalidParameterValue"),
    ({"InstanceType": "p2.xlarge"}, "InvalidParameterValue"),
    ({"ImageId": "ami-x"}, "InvalidAMIID.Malformed"),
    ({"ImageId": "ami-00000000"}, "InvalidAMIID.NotFound"),
    ({"ImageId": "resolve:ssm:/none"}, "InvalidParameterValue"),
    ({"KeyName": "nobody"}, "InvalidKeyPair.NotFound"),
    ({"SubnetId": "subnet-00000000"}, "InvalidSubnetID.NotFound"),
    ({"SecurityGroupIds": ["group"]}, "InvalidGroupId.Malformed"),
    ({"SecurityGroupIds": ["sg-00000000"]}, "InvalidGroup.NotFound"),
    ({"IamInstanceProfile": {"Name": "nobody"}}, "InvalidParameterValue"),
    ({"TagSpecifications": [{"ResourceType": "bogus", "Tags": []}]}, "InvalidParameterValue"),
    ({"InstanceMarketOptions": spot(MaxPrice="abc")}, "InvalidParameterValue"),
    ({"InstanceMarketOptions": spot(MaxPrice="0.001")}, "InvalidParameterValue"),
    ({"InstanceMarketOptions": spot(MaxPrice="0.01")}, "SpotMaxPriceTooLow"),
    (
        {"InstanceMarketOptions": spot(InstanceInterruptionBehavior="stop")},
        "InvalidParameterCombination",
    ),
    (
        {
            "InstanceMarketOptions": spot(
                SpotInstanceType="persistent", InstanceInterruptionBehavior="terminate"
            )
        },
        "InvalidParameterCombination",
    ),
    ({"InstanceInitiatedShutdownBehavior": "stop"}, "InvalidParameterCombination"),
    ({"HibernationOptions": {"Configured": True}}, "UnsupportedHibernationConfiguration"),
    (
        {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 4}}]},
        "InvalidBlockDeviceMapping",
    ),
    (
        {
            "BlockDeviceMappings": [
                {"DeviceName": "/dev/sda1", "Ebs": {"VolumeInitializationRate": 99}}
            ]
        },
        "InvalidParameterValue",
    ),
    ({"MetadataOptions": {"HttpPutResponseHopLimit": 65}}, "InvalidParameterValue"),
]


@pytest.mark.parametrize(("changes", "expected"), REFUSED, ids=[str(c)[:60] for c, _ in REFUSED])
def test_what_ec2_refuses_costs_nothing(sandbox, ec2, a_launch, code_of, changes, expected):
    """Each of these passes plain moto, so a mistake would first show on a real account."""
    code = code_of(ec2.run_instances, **a_launch(**changes))

    assert (expected, []) == (code, sandbox.instances())


@pytest.mark.parametrize(
    "changes",
    [
        {"UserData": "x" * 200_000},
        {"InstanceType": "p2.xlarge"},
        {"InstanceMarketOptions": spot(MaxPrice="0.0001")},
        {"InstanceMarketOptions": spot(InstanceInterruptionBehavior="stop")},
        {"BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 1}}]},
    ],
    ids=str,
)
def test_plain_moto_launches_it_all_the_same(plain_moto, client, code_of, changes):
    """The other half of the table above."""
    assert "ok" == code_of(client("ec2").run_instances, **{**PLAIN, **changes})


def test_user_data_of_exactly_16384_bytes_is_taken(ec2, a_launch, code_of):
    """The limit is before base64, and it is inclusive."""
    assert "ok" == code_of(ec2.run_instances, **a_launch(UserData="x" * 16_384))


def test_a_launch_template_is_checked_and_honoured(sandbox, ec2, a_launch, code_of):
    """Moto drops market options, metadata options and volumes of a template."""
    image = a_launch()["ImageId"]
    data = {
        "ImageId": image,
        "InstanceType": "g4dn.xlarge",
        "InstanceMarketOptions": {"MarketType": "spot"},
        "MetadataOptions": {"HttpTokens": "required"},
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 50}}],
    }
    ec2.create_launch_template(LaunchTemplateName="lab", LaunchTemplateData=data)

    ec2.run_instances(LaunchTemplate={"LaunchTemplateName": "lab"}, MinCount=1, MaxCount=1)

    instance = sandbox.instances()[0]
    volume = ec2.describe_volumes()["Volumes"][0]
    assert ("spot", "required", 50, "gp3") == (
        instance["InstanceLifecycle"],
        instance["MetadataOptions"]["HttpTokens"],
        volume["Size"],
        volume["VolumeType"],
    )


def test_the_root_volume_ends_with_its_instance_by_default(sandbox, ec2, running):
    """EC2 takes that from the image; a volume that outlives its instance would go on costing."""
    id_ = running()

    ec2.terminate_instances(InstanceIds=[id_])
    sandbox.advance(60)

    assert [] == ec2.describe_volumes()["Volumes"]


def test_a_dry_run_sees_permissions_and_values_only(sandbox, ec2, a_launch, code_of):
    """It cannot tell whether there is capacity, quota or the right account plan."""
    sandbox.set_capacity("g4dn.xlarge", "us-east-1a", 0)
    sandbox.set_quota("L-3819A6DF", "us-east-1", 0)
    sandbox.set_plan("FREE")
    codes = [code_of(ec2.run_instances, **a_launch(DryRun=True))]
    codes.append(code_of(ec2.run_instances, **a_launch(DryRun=True, InstanceType="p2.xlarge")))

    sandbox.deny("ec2:RunInstances")

    codes.append(code_of(ec2.run_instances, **a_launch(DryRun=True)))
    assert ["DryRunOperation", "InvalidParameterValue", "UnauthorizedOperation"] == codes


def test_a_free_plan_account_launches_no_gpu(sandbox, ec2, a_launch):
    """The text is all that tells it from other invalid combinations."""
    sandbox.set_plan("FREE")

    with pytest.raises(ec2.exceptions.ClientError, match="not eligible for Free Tier"):
        ec2.run_instances(**a_launch())
