"""How instances end in a real account: by themselves, with a wrong clock, from inside, and taken back by AWS."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from tests.live.account import COURSE, Account, Launched
from tests.live.prices import launch
from tests.live.sweeping import ROLE, experiments

from gpulab.aws import workspace
from gpulab.launch.account.storage import our_bucket, prefix
from gpulab.model.instance import TAG_COURSE

_LIFE_MIN = launch("short")[1].ends_after // timedelta(minutes=1)
_LATE_MIN = 4
_OFF_MIN = 20


@pytest.fixture(scope="module")
def short(account: Account) -> Launched:
    """An instance for some minutes, whose clock is set back, and which nobody looks after."""
    if account.machines == "none":
        pytest.skip("the sandbox runs without machines")
    launched = account.launched(account.wish("short"))
    if not account.machines:  # a sandbox's machine has this computer's clock
        account.run(launched.instance, f"sudo date -s '-{_OFF_MIN} min'")
    return launched


@pytest.mark.costs("short")
def test_the_instance_ends_itself_when_the_laptop_is_gone(account, short, record_property):
    """A closed laptop costs nothing past the deadline."""
    expires = short.instance.expires_at
    assert expires is not None

    seen = account.wait_for(short.instance.id, "terminated", minutes=_LIFE_MIN + _LATE_MIN + 2)

    record_property(
        "seen", f"terminated by {seen.state_reason}, planned for {expires:%H:%M:%S} UTC"
    )
    assert seen.state_reason in (
        "Client.InstanceInitiatedShutdown",
        "Client.UserInitiatedShutdown",
    )


@pytest.mark.costs("short")
def test_the_instance_ends_in_time_with_a_wrong_clock(account, request, record_property):
    """A clock that is 20 minutes off must not buy 20 minutes."""
    if account.machines:
        pytest.skip("a sandbox's machine has this computer's clock")
    short = request.getfixturevalue("short")  # nothing is launched for a test that is skipped
    account.wait_for(short.instance.id, "terminated", minutes=_LIFE_MIN + _LATE_MIN + 2)
    lived = account.context.now() - short.instance.launched_at

    record_property("seen", f"lived {lived.total_seconds() / 60:.1f} min of {_LIFE_MIN}")
    assert lived.total_seconds() <= (_LIFE_MIN + _LATE_MIN) * 60


@pytest.mark.costs("small")
def test_a_shutdown_inside_ends_a_one_time_spot_instance(account, record_property):
    """The agent's last word is `poweroff`; an instance that only stopped would go on costing its disk."""
    if account.machines == "none":
        pytest.skip("the sandbox runs without machines")
    if account.machines:
        pytest.skip("the sandbox's machines run no script as user data")
    made = account.small(user_data="poweroff\n")

    seen = account.wait_for(made, "terminated", minutes=8)

    volumes = account.ec2.describe_volumes(
        Filters=[{"Name": f"tag:{TAG_COURSE}", "Values": [COURSE]}]
    )["Volumes"]
    held = [
        v["VolumeId"] for v in volumes if any(a["InstanceId"] == made for a in v["Attachments"])
    ]
    record_property("seen", seen.state_reason)
    assert "Client.InstanceInitiatedShutdown" == seen.state_reason
    assert [] == held


@pytest.fixture
def interruption(account: Account) -> Iterator[Callable[[], object]]:
    """Interrupts our instance as AWS does: by AWS Fault Injection Service, whose role and template go with the test; a sandbox by its own command."""
    if account.machines:
        words = ["sandbox", "interrupt", "live-interrupted"]
        yield lambda: subprocess.run([sys.executable, "-m", "gpulab", *words], check=True)
        return
    iam = account.cloud.client("iam", "us-east-1")
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "fis.amazonaws.com"},
                "Action": "sts:AssumeRole",
            }
        ],
    }
    rights = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Action": "ec2:SendSpotInstanceInterruptions",
                "Resource": "*",
                "Condition": {"StringEquals": {f"aws:ResourceTag/{TAG_COURSE}": COURSE}},
            },
            {"Effect": "Allow", "Action": "ec2:DescribeInstances", "Resource": "*"},
        ],
    }
    made = iam.create_role(
        RoleName=ROLE,
        AssumeRolePolicyDocument=json.dumps(trust),
        Tags=[{"Key": TAG_COURSE, "Value": COURSE}],
    )
    iam.put_role_policy(RoleName=ROLE, PolicyName=ROLE, PolicyDocument=json.dumps(rights))
    time.sleep(15)  # a new role is not known everywhere at once
    try:
        yield lambda: _start_experiment(account, made["Role"]["Arn"])
    finally:
        for thing in experiments(account):
            thing.delete()


def _start_experiment(account: Account, role: str) -> None:
    fis: Any = account.cloud.client("fis", account.region)
    template = fis.create_experiment_template(
        clientToken=f"gpulab-live-{time.time():.0f}",
        description="gpulab live test",
        roleArn=role,
        stopConditions=[{"source": "none"}],
        targets={
            "spot": {
                "resourceType": "aws:ec2:spot-instance",
                "resourceTags": {"gpulab:name": "live-interrupted"},
                "selectionMode": "ALL",
            }
        },
        actions={
            "interrupt": {
                "actionId": "aws:ec2:send-spot-instance-interruptions",
                "parameters": {"durationBeforeInterruption": "PT2M"},
                "targets": {"SpotInstances": "spot"},
            }
        },
        tags={TAG_COURSE: COURSE},
    )["experimentTemplate"]["id"]
    fis.start_experiment(experimentTemplateId=template)


@pytest.mark.costs("interrupted")
def test_a_spot_interruption_saves_the_work(account, interruption, record_property):
    """Two minutes between the notice and the end: what was written until then is in the bucket."""
    launched = account.launched(account.wish("interrupted"))
    account.run(launched.reached(), "head -c 50000000 /dev/urandom > work/late.bin")
    expected = account.run(launched.instance, "sha256sum work/late.bin").split()[0]
    interruption()
    account.wait_for(launched.instance.id, "terminated", minutes=8)

    where = prefix(account.context, launched.instance.name)
    found = workspace.read_manifest(account.cloud, our_bucket(account.context), where)
    assert found is not None
    kept = {file.path: file.sha256 for file in found.files}
    record_property("seen", f"{len(kept)} files kept")
    assert expected == kept["late.bin"]
