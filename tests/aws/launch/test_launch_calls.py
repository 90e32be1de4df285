"""How many calls a launch takes, and what exactly is asked of EC2."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from tests.aws.launch.conftest import Student

from gpulab.launch.events import Guarded, Unguarded
from gpulab.launch.running import stop
from gpulab.launch.upkeep.prepare import prepare
from gpulab.model.timeline import EndedBy
from gpulab.spending.facts import timeline_of
from gpulab.store.config import DEFAULT_REGIONS
from gpulab.view.events import sentence


@pytest.fixture
def prepared(sandbox, tmp_path):
    """A computer after `gpulab init`: bucket and roles are there."""
    before = Student(sandbox, tmp_path, regions=DEFAULT_REGIONS)
    made = prepare(before.context)
    # Whoever types `gpulab up` next takes longer than IAM takes to spread the roles.
    sandbox.advance(seconds=30)
    return Student(
        sandbox,
        tmp_path,
        regions=DEFAULT_REGIONS,
        owner=made.owner,
        keep_bucket=made.keep_bucket,
        instance_role=made.instance_role,
        scheduler_role=made.scheduler_role,
    )


def asked(student, attempt="launch0001-1"):
    """The parameters of the RunInstances call with a token, as the simulated EC2 received them."""
    calls = [c for c in student.sandbox.calls if c.operation == "RunInstances"]
    return next(dict(c.params) for c in calls if c.params["ClientToken"] == attempt)


def test_a_first_launch_on_a_virgin_account_takes_at_most_fourteen_calls(sandbox, make_student):
    """Every call is a wait for the student and a share of the account's limits; the best of the others needs 11 and checks neither quota nor credit."""
    student = make_student(regions=DEFAULT_REGIONS)

    run = student.up()

    assert [run.instance.id] == student.live()
    assert len(student.operations()) <= 14


def test_a_first_launch_after_init_takes_at_most_fourteen_calls_too(prepared):
    """With bucket, roles and a scheduled end it is still one breath, once the role can be assumed."""
    prepared.sandbox.advance(10)
    before = len(prepared.sandbox.calls)

    run = prepared.up()

    assert [run.instance.id] == prepared.live()
    assert len(prepared.operations(before)) <= 14


def test_a_warm_launch_takes_at_most_six_calls_with_bucket_and_scheduled_end(prepared):
    """What AWS said yesterday about images and networks is believed; prices, instances and the launch are not."""
    prepared.up("week3")
    before = len(prepared.sandbox.calls)

    run = prepared.up("week4")

    assert run.instance.id in prepared.live()
    assert [
        "CreateSchedule",
        "DescribeInstances",
        "DescribeInstances",
        "DescribeSpotPriceHistory",
        "PutObject",
        "RunInstances",
    ] == sorted(prepared.operations(before))


def test_a_dry_run_changes_nothing(sandbox, student):
    """`--dry-run` is the same plan, not applied."""
    from gpulab.launch import up

    up.plan(student.context, student.request())

    assert all(o.startswith(("Get", "Describe", "List")) for o in student.operations())


def test_a_plan_that_is_declined_changes_nothing(sandbox, student):
    """A no at the question costs nothing and leaves nothing."""
    run = student.up(confirm=lambda question: False)

    assert ["Planned", "Declined"] == run.told()
    assert all(o.startswith(("Get", "Describe", "List")) for o in student.operations())


def test_the_launch_call_carries_its_own_end_and_its_own_safety(prepared):
    """What is not in this one call would need a second one, which a closed laptop never makes."""
    prepared.up()

    call = asked(prepared)

    assert "terminate" == call["InstanceInitiatedShutdownBehavior"]
    assert {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
        "InstanceMetadataTags": "enabled",
    } == call["MetadataOptions"]
    assert {
        "MarketType": "spot",
        "SpotOptions": {
            "SpotInstanceType": "one-time",
            "InstanceInterruptionBehavior": "terminate",
        },
    } == call["InstanceMarketOptions"]
    assert [
        {
            "DeviceName": "/dev/sda1",
            "Ebs": {
                "VolumeSize": 60,
                "VolumeType": "gp3",
                "Encrypted": True,
                "DeleteOnTermination": True,
            },
        }
    ] == call["BlockDeviceMappings"]


def test_everything_billable_is_tagged_in_the_call_that_makes_it(prepared):
    """An untagged resource is one that nobody finds again."""
    prepared.up()

    specifications = asked(prepared)["TagSpecifications"]

    owner = prepared.context.profile.owner
    tags = {t["Key"]: t["Value"] for t in specifications[0]["Tags"]}
    assert ["instance", "volume", "spot-instances-request"] == [
        s["ResourceType"] for s in specifications
    ]
    assert ("week4", owner, "launch0001", "tf2-small") == tuple(
        tags[f"gpulab:{k}"] for k in ("name", "owner", "launch", "env")
    )
    assert tags["gpulab:expires"].endswith("Z")


def test_a_price_cap_is_sent_and_no_cap_leaves_aws_its_own(sandbox, student):
    """AWS's own cap is the on-demand price; a lower one only brings interruptions, so it is the user's choice."""
    from decimal import Decimal

    student.up("free")
    student.up("capped", max_usd_per_hour=Decimal("0.40"))

    free, capped = asked(student, "launch0001-1"), asked(student, "launch0002-1")
    assert "MaxPrice" not in free["InstanceMarketOptions"]["SpotOptions"]
    assert "0.4" == capped["InstanceMarketOptions"]["SpotOptions"]["MaxPrice"].rstrip("0")


def test_port_22_is_open_to_one_address_and_nothing_else_is(sandbox, student, ec2):
    """Jupyter listens on the instance's localhost; the only way in is ssh from the student's address."""
    student.up()

    group = ec2.describe_security_groups(GroupNames=["gpulab-me"])["SecurityGroups"][0]

    rules = [
        (r["FromPort"], r["ToPort"], [i["CidrIp"] for i in r["IpRanges"]])
        for r in group["IpPermissions"]
    ]
    assert [(22, 22, ["203.0.113.7/32"])] == rules


def test_a_new_address_replaces_the_old_one(sandbox, student, ec2):
    """The student went from the campus to a café: the campus address is closed."""
    from dataclasses import replace

    student.up("first")
    moved = student.again()
    moved.context = replace(student.context, cidr="198.51.100.9/32")
    moved.up("second")

    group = ec2.describe_security_groups(GroupNames=["gpulab-me"])["SecurityGroups"][0]

    assert ["198.51.100.9/32"] == [
        i["CidrIp"] for r in group["IpPermissions"] for i in r["IpRanges"]
    ]


def test_the_account_ends_the_instance_a_little_after_its_own_end(prepared):
    """The laptop is shut and the instance hangs: the account ends it all the same."""
    run = prepared.up(duration=timedelta(hours=2))

    guarded = run.of(Guarded)[0]
    assert run.instance.expires_at + timedelta(minutes=3) == guarded.until
    prepared.sandbox.advance(seconds=2 * 3600 + 600)
    assert [] == prepared.live()


def test_a_role_the_scheduler_cannot_assume_yet_is_tried_again_once_the_instance_runs(prepared):
    """`gpulab init` and `gpulab up` in one breath: IAM needs some seconds to spread a new role."""
    prepared.sandbox.refuse("CreateSchedule", "ValidationException", times=1)

    run = prepared.up()

    assert ["Unguarded", "Running", "Guarded"] == run.told()[-3:]
    (waited,) = run.of(Unguarded)
    assert sentence(waited).startswith("The account's scheduler cannot use its role yet")


def test_a_role_the_scheduler_never_takes_is_told_with_what_aws_said(prepared):
    """Nobody asks a third time: from then on only the timer on the instance is left, and the student must know."""
    prepared.sandbox.refuse("CreateSchedule", "ValidationException", times=2)

    run = prepared.up()

    assert [True, False] == [e.is_asked_again for e in run.of(Unguarded)]
    assert sentence(run.of(Unguarded)[-1]).startswith("No scheduled end in the account (")


def test_a_role_ec2_does_not_know_yet_is_asked_for_again(prepared):
    """The same for the role that keeps the work."""
    words = "Value (gpulab-work) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name"
    prepared.sandbox.refuse("RunInstances", "InvalidParameterValue", message=words, times=2)

    run = prepared.up()

    assert [run.instance.id] == prepared.live()


def test_without_the_role_the_missing_scheduled_end_is_told(sandbox, student):
    """Only the timer on the instance is left, and the student knows."""
    run = student.up()

    assert ["the account has no role for it; `gpulab init` makes one where it may"] == [
        e.why for e in run.of(Unguarded)
    ]


def test_the_ledger_knows_the_launch_its_price_and_its_disk(sandbox, student):
    """A terminated instance leaves AWS's lists within an hour; what it cost must not."""
    run = student.up()

    facts = {(f.kind.value, f.subject): f.details for f in student.context.ledger.facts()}

    launched = facts[("launched", run.instance.id)]
    volume = facts[("volume", run.instance.volume_ids[0])]
    assert ("g4dn.xlarge", "spot", "week4") == tuple(
        launched[k] for k in ("instance_type", "market", "name")
    )
    assert ("60", "0.08", run.instance.id) == tuple(
        volume[k] for k in ("size_gb", "usd_per_gb_month", "instance_id")
    )


def test_the_ledger_counts_as_aws_does_from_running_to_the_call_that_ends(sandbox, student):
    """Booting is free and a disk outlives its instance: of a run that cost a cent, either is more than the estimate may be off."""
    instance = student.up().instance
    sandbox.advance(900)
    list(stop.stop(student.context, instance, save=False))

    reading = timeline_of(student.context.ledger.facts())

    billed = {line.kind: line for line in sandbox.bill().lines}
    (run,), (disk,) = reading.timeline.instances[0].runs, reading.timeline.volumes
    assert abs(run.begins_at - billed["instance"].begins_at) < timedelta(seconds=3)
    assert run.ends_at == billed["instance"].ends_at.replace(microsecond=0)
    assert abs(disk.deleted_at - billed["ebs"].ends_at) < timedelta(seconds=6)
    assert (EndedBy.USER, []) == (run.ended_by, list(reading.problems))


def test_no_secret_is_in_the_journal(sandbox, student):
    """The journal is kept for months, and sent to whoever helps."""
    student.up()

    journal = student.context.folder.journal.read_text(encoding="utf-8")
    secrets = [
        student.context.folder.key.read_text(encoding="utf-8").splitlines()[1],
        student.context.cloud._open().get_credentials().secret_key,
    ]
    intent = json.loads(journal.splitlines()[0])
    assert not any(s in journal for s in secrets)
    assert "launch0001-1" == intent["token"]
