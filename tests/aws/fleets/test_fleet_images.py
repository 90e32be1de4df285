"""A class boots from images with its environment where an account has one, at one look for all of it; plan and outcome say which and why."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

from tests.aws.conftest import a_client

from gpulab.bootstrap import load_environment
from gpulab.fleets import up
from gpulab.fleets.accounts import Accounts
from gpulab.model.instance import TAG_BAKE, TAG_ENVIRONMENT, TAG_LOCK, TAG_USABLE
from gpulab.sandbox.credentials import DEFAULT_ACCOUNT
from gpulab.view.fleet import outcomes_text, plan_text

LOCK = load_environment("tf2-small").image_key(has_gpu=True, has_bucket=False)
# An image takes minutes to be made, and that there is none is believed for an hour.
AN_HOUR = 3700
INSTALLS = "It installs tf2-small: us-east-1 has no image of it"
BOOTS = "It boots from x-gpu-1, which has tf2-small as it is locked now; its first reads come from S3 and are slow"


def an_image(instance_id, *, lock=LOCK, usable="true", name="x-gpu-1", **credentials) -> str:
    """An image of an instance, tagged as `gpulab image bake` does; returns its id."""
    tags = {TAG_BAKE: "b1", TAG_ENVIRONMENT: "tf2-small", TAG_LOCK: lock, TAG_USABLE: usable}
    pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
    made = a_client("ec2", **credentials).create_image(
        InstanceId=instance_id,
        Name=name,
        NoReboot=True,
        TagSpecifications=[{"ResourceType": "image", "Tags": pairs}],
    )
    return str(made["ImageId"])


def rehearsed(klass) -> str:
    """One student's instance runs: something to make an image of."""
    return str(klass.up("s000000").outcomes[0].instance.id)


def in_account(sandbox, number) -> dict[str, str]:
    """The credentials of somebody who may do everything in a student's account."""
    statement = {"Effect": "Allow", "Action": "*", "Resource": "*"}
    trust = {
        "Effect": "Allow",
        "Action": "sts:AssumeRole",
        "Principal": {"AWS": f"arn:aws:iam::{DEFAULT_ACCOUNT}:root"},
    }
    rights = {"PolicyName": "all", "PolicyDocument": {"Statement": [statement]}}
    role = {
        "RoleName": "baker",
        "AssumeRolePolicyDocument": {"Statement": [trust]},
        "Policies": [rights],
    }
    made = {"Baker": {"Type": "AWS::IAM::Role", "Properties": role}}
    sandbox.apply_template(
        json.dumps({"Metadata": {"gpulab": {"account": number}}, "Resources": made})
    )
    given = a_client("sts").assume_role(
        RoleArn=f"arn:aws:iam::{number}:role/baker", RoleSessionName="bakes"
    )["Credentials"]
    return {
        "aws_access_key_id": given["AccessKeyId"],
        "aws_secret_access_key": given["SecretAccessKey"],
        "aws_session_token": given["SessionToken"],
    }


def test_a_class_boots_from_the_tested_image_of_its_lock_and_says_so(make_class, sandbox):
    """Three hundred installations of TensorFlow are three hundred waits of minutes, and a package index that may slow down."""
    klass = make_class(4)
    image = an_image(rehearsed(klass))
    sandbox.advance(seconds=AN_HOUR)

    run = klass.up()

    new = [o for o in run.outcomes if o.boot]
    assert [image] * 3 == [o.instance.image_id for o in new] == [o.boot.baked.id for o in new]
    assert f"  boots     {BOOTS}\n" in plan_text(run.plan, now=sandbox.now())
    assert f"  {BOOTS} (3 instances)" in outcomes_text(run.outcomes).splitlines()


def test_images_are_looked_for_once_an_account_and_region_not_once_a_student(make_class, sandbox):
    """One account answers three hundred launches; each look more is a share of its limits."""
    klass = make_class(6)
    before = len(sandbox.calls)

    run = klass.up()

    looks = [c for c in list(sandbox.calls)[before:] if c.operation == "DescribeImages"]
    own = [c for c in looks if c.params.get("Owners") == ["self"]]
    assert ["launched"] * 6 == run.results()
    assert 1 == len(own)
    assert {INSTALLS} == {o.boot.why for o in run.outcomes}


def test_an_image_without_a_test_or_of_another_lock_is_not_used_and_the_plan_says_why(
    make_class, sandbox
):
    """An image nobody has booted is a class that does not start."""
    klass = make_class(2)
    instance = rehearsed(klass)
    an_image(instance, usable="no")
    sandbox.advance(seconds=AN_HOUR)
    untested = up.plan(klass.accounts(), klass.wish()).plan
    sandbox.advance(seconds=AN_HOUR)
    an_image(instance, lock="0" * 16, name="x-gpu-0")
    sandbox.advance(seconds=AN_HOUR)

    old = up.plan(klass.accounts(), klass.wish()).plan

    said = [
        " ".join(boot.why for boot in plan.boots["profile-default"]) for plan in (untested, old)
    ]
    assert said[0].startswith("It installs tf2-small: image x-gpu-1 was not tested yet")
    assert said[1].startswith("It installs tf2-small: image x-gpu-0 has an older lock")


def test_an_image_that_was_baked_with_a_bucket_serves_a_class_too(make_class, sandbox):
    """The teacher bakes with the own profile; a class has no bucket, and the hour of an installation is in the image all the same."""
    klass = make_class(2, lab='environment = "tf2"\ninstance_type = "g4dn.xlarge"')
    lock = load_environment("tf2").image_key(has_gpu=True, has_bucket=True)
    image = an_image(rehearsed(klass), lock=lock)
    sandbox.advance(seconds=AN_HOUR)

    run = klass.up()

    assert ["kept", "launched"] == run.results()
    assert image == run.outcomes[1].instance.image_id


def test_the_rate_of_filling_the_disk_is_paid_only_where_asked_and_counted_in_the_worst_case(
    make_class, sandbox
):
    """It is a cent or twenty for one student and sixty dollars for a class: a limit on dollars must see them."""
    klass = make_class(2)
    an_image(rehearsed(klass))
    sandbox.advance(seconds=AN_HOUR)
    slow = up.plan(klass.accounts(), klass.wish()).plan
    opened = klass.accounts

    def accounts(**outside) -> Accounts:
        given = opened(**outside)
        paid = replace(given.outside.config.profile("default"), image_rate_mib_s=300)
        config = replace(given.outside.config, profiles={"default": paid})
        return Accounts(replace(given.outside, config=config), given.course)

    klass.accounts = accounts
    run = klass.up()

    launch = [c for c in sandbox.calls if c.operation == "RunInstances"][-1]
    disk = launch.params["BlockDeviceMappings"][0]["Ebs"]
    (boot,) = run.plan.boots["profile-default"]
    assert 300 == disk["VolumeInitializationRate"]
    assert Decimal("0.216") == boot.once_usd
    assert boot.why.endswith("filled at 300 MiB/s, $0.22 once")
    assert boot.once_usd == run.plan.steps[1].at_most_usd - slow.steps[1].at_most_usd


def test_each_account_has_its_own_images_within_seven_calls(make_class, sandbox):
    """One student baked; the next one's account has none. The second Monday, when everything but images and prices is remembered."""
    klass = make_class(2, kind="own")
    first = klass.up()
    baker = in_account(sandbox, "111100000000")
    image = an_image(first.outcomes[0].instance.id, **baker)
    sandbox.advance(seconds=AN_HOUR)
    klass.course = replace(klass.course, labs=(replace(klass.course.labs[0], id="w2"),))
    klass.lab = replace(klass.lab, id="w2", ends_at=klass.lab.ends_at.replace(hour=23))
    before = len(sandbox.calls)

    run = klass.up()

    calls = list(sandbox.calls)[before:]
    assert ["launched", "launched"] == run.results()
    assert [image, None] == [o.boot.baked.id if o.boot.baked else None for o in run.outcomes]
    assert [image, first.outcomes[1].instance.image_id] == [
        o.instance.image_id for o in run.outcomes
    ]
    said = outcomes_text(run.outcomes).splitlines()
    assert f"  {INSTALLS}" in said
    assert f"  {BOOTS.replace('from x-gpu-1', 'from an image')}" in said
    assert ["DescribeImages"] * 2 == [c.operation for c in calls if c.operation == "DescribeImages"]


def test_an_image_that_was_deleted_meanwhile_costs_the_class_one_repair(make_class, sandbox):
    """What is remembered for a day may be wrong; the class goes on with the publisher's image."""
    klass = make_class(3)
    image = an_image(rehearsed(klass))
    sandbox.advance(seconds=AN_HOUR)
    klass.up("s000001")
    a_client("ec2").deregister_image(ImageId=image)
    sandbox.advance(seconds=600)

    run = klass.up()

    assert ["kept", "kept", "launched"] == run.results()
    assert INSTALLS == run.outcomes[2].boot.why
    assert klass.names() == klass.live()


def test_images_that_cannot_be_read_stop_nobody_and_are_said(make_class, sandbox):
    """Somebody took the right away over lunch; what the publisher's image is called is remembered, and the class installs."""
    klass = make_class(2)
    rehearsed(klass)
    sandbox.advance(seconds=AN_HOUR)
    sandbox.refuse("DescribeImages", "UnauthorizedOperation", status=403, times=None)

    run = klass.up()

    assert ["kept", "launched"] == run.results()
    assert run.outcomes[1].boot.why.startswith(
        "It installs tf2-small: the images of us-east-1 could not be read ("
    )
