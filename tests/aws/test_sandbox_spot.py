"""R2 to R6 and R16: spot requests, spot prices and interruptions."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal

import pytest

from gpulab.sandbox import Sandbox

PLAIN = {
    "ImageId": "ami-12345678",
    "InstanceType": "g4dn.xlarge",
    "MinCount": 1,
    "MaxCount": 1,
    "InstanceMarketOptions": {"MarketType": "spot"},
}
PERSISTENT = {
    "MarketType": "spot",
    "SpotOptions": {"SpotInstanceType": "persistent", "InstanceInterruptionBehavior": "stop"},
}


def the_request(ec2):
    """The only spot request there is: its state and status code."""
    request = ec2.describe_spot_instance_requests()["SpotInstanceRequests"][0]
    return request["State"], request["Status"]["Code"]


# -- R2, R3, R4 ---------------------------------------------------------------------------------------------------------------


def test_plain_moto_makes_no_spot_request(plain_moto, client):
    """Nothing that a program does with requests could be tested."""
    ec2 = client("ec2")

    instance = ec2.run_instances(**PLAIN)["Instances"][0]

    assert (None, []) == (
        instance.get("SpotInstanceRequestId"),
        ec2.describe_spot_instance_requests()["SpotInstanceRequests"],
    )


def test_a_spot_launch_makes_a_request_with_its_own_tags(sandbox, ec2, a_launch):
    """Requests are tagged apart from instances, and outlive them."""
    tags = [
        {"ResourceType": "spot-instances-request", "Tags": [{"Key": "gpulab:owner", "Value": "s1"}]}
    ]

    instance = ec2.run_instances(**a_launch(TagSpecifications=tags))["Instances"][0]

    found = ec2.describe_spot_instance_requests(
        Filters=[{"Name": "tag:gpulab:owner", "Values": ["s*"]}]
    )["SpotInstanceRequests"]
    assert [(instance["SpotInstanceRequestId"], instance["InstanceId"], "one-time", "active")] == [
        (r["SpotInstanceRequestId"], r["InstanceId"], r["Type"], r["State"]) for r in found
    ]
    assert sandbox.now() == found[0]["CreateTime"]


def test_an_unknown_request_is_an_error(ec2, code_of):
    """Moto answers an empty list."""
    code = code_of(ec2.describe_spot_instance_requests, SpotInstanceRequestIds=["sir-00000000"])

    assert "InvalidSpotInstanceRequestID.NotFound" == code


def test_terminating_closes_a_one_time_request(ec2, running):
    """Under moto it stays active for ever."""
    id_ = running()

    ec2.terminate_instances(InstanceIds=[id_])

    assert ("closed", "instance-terminated-by-user") == the_request(ec2)


def test_cancelling_a_request_leaves_its_instance_running(sandbox, ec2, running):
    """The classic forgotten bill: cancelled and still paid for."""
    running()
    request = ec2.describe_spot_instance_requests()["SpotInstanceRequests"][0]
    ids = [request["SpotInstanceRequestId"]]

    ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=ids)
    ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=ids)

    assert ("cancelled", "request-canceled-and-instance-running") == the_request(ec2)
    assert ["running"] == [i["State"]["Name"] for i in sandbox.instances()]


def test_plain_moto_stops_a_one_time_spot_instance(plain_moto, client, code_of):
    """A `stop` command would pass its tests and fail its first user."""
    ec2 = client("ec2")
    id_ = ec2.run_instances(**PLAIN)["Instances"][0]["InstanceId"]

    assert "ok" == code_of(ec2.stop_instances, InstanceIds=[id_])


def test_a_one_time_spot_instance_refuses_to_stop(sandbox, ec2, running):
    """The message names the one-time request, which is what a user must be told."""
    id_ = running()

    with pytest.raises(
        ec2.exceptions.ClientError, match="one-time Spot Instance request"
    ) as caught:
        ec2.stop_instances(InstanceIds=[id_])

    assert "UnsupportedOperation" == caught.value.response["Error"]["Code"]
    assert ["running"] == [i["State"]["Name"] for i in sandbox.instances()]


# -- R5 -----------------------------------------------------------------------------------------------------------------------


def test_a_persistent_request_brings_a_new_instance(sandbox, ec2, running):
    """Terminating alone does not end a persistent request: it costs again a minute later."""
    first = running(InstanceMarketOptions=PERSISTENT)

    ec2.terminate_instances(InstanceIds=[first])
    sandbox.advance(31)
    between = the_request(ec2)
    sandbox.advance(90)

    alive = sandbox.instances("running")
    assert (("open", "pending-evaluation"), 1, False) == (
        between,
        len(alive),
        alive[0]["InstanceId"] == first,
    )


def test_cancel_and_terminate_end_a_persistent_request(sandbox, ec2, running):
    """Only both together."""
    first = running(InstanceMarketOptions=PERSISTENT)
    request = sandbox.instances()[0]["SpotInstanceRequestId"]

    ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[request])
    ec2.terminate_instances(InstanceIds=[first])
    sandbox.advance(600)

    assert [] == sandbox.instances("pending", "running")


def test_stopping_a_persistent_instance_disables_its_request(sandbox, ec2, running):
    """And starting it again makes the request active."""
    id_ = running(InstanceMarketOptions=PERSISTENT)
    ec2.stop_instances(InstanceIds=[id_])
    sandbox.advance(60)
    stopped = the_request(ec2)

    ec2.start_instances(InstanceIds=[id_])

    assert (("disabled", "instance-stopped-by-user"), ("active", "fulfilled")) == (
        stopped,
        the_request(ec2),
    )


# -- R16 ----------------------------------------------------------------------------------------------------------------------


def test_an_interruption_gives_two_minutes_then_ends_the_instance(sandbox, ec2, running):
    """What a student sees of it: the state reason, and a request that says why."""
    id_ = running()

    sandbox.interrupt(id_)
    during = (the_request(ec2), sandbox.instances()[0]["State"]["Name"])
    sandbox.advance(120)
    ending = sandbox.instances()[0]["State"]["Name"]
    sandbox.advance(30)

    ended = sandbox.instances()[0]
    assert (("active", "marked-for-termination"), "running") == during
    assert ("shutting-down", "terminated", "Server.SpotInstanceTermination") == (
        ending,
        ended["State"]["Name"],
        ended["StateReason"]["Code"],
    )
    assert ("closed", "instance-terminated-no-capacity") == the_request(ec2)


def test_an_interrupted_persistent_instance_stops_and_comes_back(sandbox, ec2, running):
    """Interruption behaviour `stop`: the same instance, later."""
    id_ = running(InstanceMarketOptions=PERSISTENT)

    sandbox.interrupt(id_, action="stop")
    sandbox.advance(145)
    stopped = sandbox.instances()[0]
    sandbox.advance(100)

    assert ("stopped", "Server.SpotInstanceShutdown") == (
        stopped["State"]["Name"],
        stopped["StateReason"]["Code"],
    )
    assert [(id_, "running")] == [
        (i["InstanceId"], i["State"]["Name"]) for i in sandbox.instances()
    ]


def test_an_interruption_reaches_the_rules_of_eventbridge(sandbox, client, running):
    """The warning a course account may listen to."""
    sqs, events = client("sqs"), client("events")
    url = sqs.create_queue(QueueName="warnings")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"][
        "QueueArn"
    ]
    events.put_rule(Name="spot", EventPattern=json.dumps({"source": ["aws.ec2"]}))
    events.put_targets(Rule="spot", Targets=[{"Id": "1", "Arn": arn}])
    id_ = running()

    sandbox.interrupt(id_)

    message = json.loads(sqs.receive_message(QueueUrl=url)["Messages"][0]["Body"])
    assert ("EC2 Spot Instance Interruption Warning", id_, "terminate") == (
        message["detail-type"],
        message["detail"]["instance-id"],
        message["detail"]["instance-action"],
    )


def test_only_a_running_spot_instance_can_be_interrupted(sandbox, running):
    """A typing error in a rehearsal is told, not swallowed."""
    id_ = running(InstanceMarketOptions=None)

    with pytest.raises(ValueError, match="is not a running spot instance"):
        sandbox.interrupt(id_)


# -- R6 -----------------------------------------------------------------------------------------------------------------------


def test_plain_moto_has_one_price(plain_moto, client):
    """No order of prices, no age and no paging could be tested with it."""
    history = client("ec2").describe_spot_price_history()["SpotPriceHistory"]

    assert ({"0.00001"}, {2006}) == (
        {row["SpotPrice"] for row in history},
        {row["Timestamp"].year for row in history},
    )


def prices(ec2, **asked):
    """The Linux history of g4dn.xlarge."""
    return ec2.describe_spot_price_history(
        InstanceTypes=["g4dn.xlarge"], ProductDescriptions=["Linux/UNIX"], **asked
    )["SpotPriceHistory"]


def test_now_gives_the_price_in_force_in_each_zone(sandbox, ec2):
    """The last change before StartTime is included, or a quiet zone would have no price."""
    rows = prices(ec2, StartTime=sandbox.now(), EndTime=sandbox.now())

    assert ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d", "us-east-1f"] == sorted(
        row["AvailabilityZone"] for row in rows
    )
    assert all(row["Timestamp"] <= sandbox.now() for row in rows)
    assert all(Decimal("0.1") < Decimal(row["SpotPrice"]) < Decimal("0.526") for row in rows)


def test_a_price_that_is_set_is_the_newest_change(sandbox, ec2):
    """Newest first, and the older prices stay in the history."""
    sandbox.advance(3600)
    sandbox.set_price("g4dn.xlarge", "us-east-1a", "0.4321")

    rows = prices(ec2, AvailabilityZone="us-east-1a", StartTime=sandbox.now() - timedelta(days=30))

    assert ("0.432100", sandbox.now()) == (rows[0]["SpotPrice"], rows[0]["Timestamp"])
    assert [row["Timestamp"] for row in rows] == sorted(
        (row["Timestamp"] for row in rows), reverse=True
    )


def test_history_goes_90_days_back_in_pages_of_1000(sandbox, ec2):
    """A caller who does not page sees the newest thousand only."""
    asked = {"InstanceTypes": ["g4dn.xlarge", "g5.xlarge"], "ProductDescriptions": ["Linux/UNIX"]}
    pages = list(ec2.get_paginator("describe_spot_price_history").paginate(**asked))

    rows = [row for page in pages for row in page["SpotPriceHistory"]]
    assert [1000, 1000] == [len(page["SpotPriceHistory"]) for page in pages[:-1]]
    assert len(rows) == len(
        {(r["InstanceType"], r["AvailabilityZone"], r["Timestamp"]) for r in rows}
    )
    assert 80 < (sandbox.now() - min(row["Timestamp"] for row in rows)).days < 95


def test_filters_have_wildcards(ec2):
    """EC2's filters do, and so does the layer."""
    rows = ec2.describe_spot_price_history(
        Filters=[
            {"Name": "instance-type", "Values": ["g4dn.*"]},
            {"Name": "availability-zone", "Values": ["*a"]},
            {"Name": "product-description", "Values": ["Linux/UNIX"]},
        ],
        MaxResults=50,
    )["SpotPriceHistory"]

    assert ({"g4dn"}, {"us-east-1a"}) == (
        {row["InstanceType"].split(".")[0] for row in rows},
        {row["AvailabilityZone"] for row in rows},
    )


def test_the_seed_decides_the_prices(client):
    """A rehearsal can be repeated, and another one differs."""
    found = []
    for seed in (1, 1, 2):
        with Sandbox(seed=seed) as sandbox:
            rows = prices(client("ec2"), StartTime=sandbox.now(), EndTime=sandbox.now())
            found.append({row["AvailabilityZone"]: row["SpotPrice"] for row in rows})

    assert (True, False) == (found[0] == found[1], found[0] == found[2])
