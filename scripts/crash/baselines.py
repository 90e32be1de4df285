"""
Two launchers of other styles, in the same harness under the same breaks: what a token for each attempt, a journal and typed errors are for.

They are models of about 40 lines, not anybody's code: *naive* tags after the launch and saves its state at the end; *tags and failover* tags
in the launch call and looks by tag first. Both try the next zone after any error, as is usual.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from crash import casting
from crash.faults import ON_AWS, OTHER
from crash.plays import Play, initialised, live
from crash.recovering import renew_credentials
from crash.seams import Broken
from crash.stage import Stage
from gpulab.cli.context import Context

_UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
_ZONES = ("us-east-1a", "us-east-1b", "us-east-1d")
_TAGS = [
    {"Key": k, "Value": v} for k, v in {"gpulab:name": "week4", "gpulab:launch": "one"}.items()
]


def naive(words: Sequence[str]) -> int:
    """Launch; tag afterwards; save the state at the end; any error means the next zone."""
    state, ec2 = _state(), boto3.client("ec2", region_name="us-east-1")
    if state.exists() and _is_alive(ec2, json.loads(state.read_text())["id"]):
        return 0
    name = f"naive-{uuid.uuid4().hex[:8]}"
    found = _launched(ec2, ec2.create_security_group(GroupName=name, Description="-")["GroupId"])
    if found is None:
        return 1
    Context.sleep(5)  # EC2 does not know the new instance everywhere yet
    ec2.create_tags(Resources=[found], Tags=_TAGS)
    _wait(ec2, found)
    state.write_text(json.dumps({"id": found}))
    return 0


def tags_and_failover(words: Sequence[str]) -> int:
    """Look by tag; launch with tags in the call; any error means the next zone."""
    state, ec2 = _state(), boto3.client("ec2", region_name="us-east-1")
    wanted = [{"Name": "tag:gpulab:name", "Values": ["week4"]}]
    wanted.append({"Name": "instance-state-name", "Values": ["pending", "running"]})
    rows = ec2.describe_instances(Filters=wanted)["Reservations"]
    found = rows[0]["Instances"][0]["InstanceId"] if rows else None
    if found is None:
        found = _launched(ec2, _group(ec2), tags=[{"ResourceType": "instance", "Tags": _TAGS}])
    if found is None:
        return 1
    _wait(ec2, found)
    state.write_text(json.dumps({"id": found}))
    return 0


LAUNCHERS: dict[str, Callable[[Sequence[str]], int]] = {
    "naive": naive,
    "tags and failover": tags_and_failover,
}


def play(call: str | None = None, *, jobs: int) -> dict[str, dict[str, int]]:
    """
    Break both launchers, run them again, and count what does not hold, by kind.

    Args:
        call: Only at this operation; `None` for each of their AWS calls.
    """
    return {name: dict(_counts(enter, call, jobs=jobs)) for name, enter in LAUNCHERS.items()}


def _counts(enter: Callable[[Sequence[str]], int], call: str | None, *, jobs: int) -> Counter[str]:
    stage = casting.make_stage(Play("baseline", ("up",), initialised, 1))
    stage.enter = enter
    try:
        crossed = casting.act(stage, lambda own: {"found": own.run("up").boundaries})["found"]
        cases = [
            Broken(kind, name)
            for name in dict.fromkeys(crossed)
            if name.startswith("aws ") and (call or "") in name
            for kind in ON_AWS
            if kind != OTHER
        ]
        counts = Counter({"cases": len(cases)})
        doings = [lambda own, b=b: _judged(own, b) for b in cases]
        for _, said in casting.act_all(stage, doings, jobs=jobs):
            counts.update({kind: n for kind, n in said.items() if kind != "failed"})
            counts["harness"] += "failed" in said
        return counts
    finally:
        stage.close()


def _judged(stage: Stage, broken: Broken) -> dict[str, Any]:
    if broken.kind == "two at once":
        stage.rival = ("up",)
    stage.run("up", broken=broken)
    unknown = _unknown(stage)
    renew_credentials(stage)
    stage.advance(2)
    stage.run("up")
    count = len(live(stage))
    untagged = sum("gpulab:launch" not in one.tags for one in live(stage))
    return {
        "alive and not in the state after the break": int(unknown > 0),
        "two or more after running again": int(count > 1),
        "none after running again": int(count == 0),
        "untagged after running again": int(untagged > 0),
        "not in the state after running again": int(_unknown(stage) > 0),
    }


def _unknown(stage: Stage) -> int:
    path = stage.home.parent / "state.json"
    known = json.loads(path.read_text())["id"] if path.exists() and path.stat().st_size else ""
    return sum(one.id != known for one in live(stage))


def _state() -> Path:
    return Path(os.environ["HOME"]) / "state.json"


def _launched(ec2: Any, group: str, *, tags: Sequence[Any] = ()) -> str | None:
    Context.sleep(5)  # EC2 does not know the new group everywhere yet
    image = boto3.client("ssm", region_name="us-east-1").get_parameter(Name=_UBUNTU)
    for zone in _ZONES:
        try:
            reply = ec2.run_instances(
                ImageId=image["Parameter"]["Value"],
                InstanceType="g4dn.xlarge",
                MinCount=1,
                MaxCount=1,
                SecurityGroupIds=[group],
                Placement={"AvailabilityZone": zone},
                InstanceMarketOptions={"MarketType": "spot"},
                TagSpecifications=list(tags),
            )
        except (ClientError, BotoCoreError):
            continue
        return str(reply["Instances"][0]["InstanceId"])
    return None


def _group(ec2: Any) -> str:
    try:
        return str(ec2.create_security_group(GroupName="peer", Description="-")["GroupId"])
    except ClientError:
        found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["peer"]}])
        return str(found["SecurityGroups"][0]["GroupId"])


def _is_alive(ec2: Any, instance_id: str) -> bool:
    rows = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    return bool(rows) and rows[0]["Instances"][0]["State"]["Name"] in ("pending", "running")


def _wait(ec2: Any, instance_id: str) -> None:
    for _ in range(40):
        Context.sleep(5)
        try:
            if _is_alive(ec2, instance_id):
                return
        except ClientError:
            continue
