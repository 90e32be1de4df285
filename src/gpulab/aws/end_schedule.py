"""
The end of an instance, scheduled in the account itself: it works with the laptop shut and the instance hung.

Hides EventBridge Scheduler. "Not allowed" is an answer here, not a failure: many student accounts may not make roles or schedules, and
the timer on the instance works without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.errors import AwsError, GpulabError, NotAllowed, NotFound
from gpulab.model.instance import TAG_COURSE, TAG_OWNER
from gpulab.rights.roles import end_role

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_scheduler import EventBridgeSchedulerClient

_TARGET = "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances"
_PREFIX = "gpulab-end-"
_NAME = re.compile(r"gpulab-end-.*-(?P<instance>i-[0-9a-f]+)")


@dataclass(frozen=True)
class EndSchedule:
    """
    A scheduled end.

    Attributes:
        until: When the account ends the instance; aware UTC; `None` when nothing is armed.
        why_not: Why nothing is armed, a half-sentence; `""` when it is.
        error: What AWS said when it neither armed nor told; an earlier end may stand all the same. `None` when nothing stands in the way.
    """

    until: datetime | None
    why_not: str = ""
    error: GpulabError | None = field(default=None, compare=False)

    @property
    def is_armed(self) -> bool:
        """Whether the account will end the instance."""
        return self.until is not None

    @property
    def is_too_early(self) -> bool:
        """Whether the scheduler could not assume the role, as it cannot for some seconds after the role was made."""
        return self.error is not None and self.error.code == "ValidationException"


def arm(
    cloud: Cloud, region: str, instance_id: str, *, owner: str, until: datetime, role_arn: str
) -> EndSchedule:
    """
    Schedule the end of an instance, or move it when it is scheduled already.

    Args:
        owner: Whose the instance is. Schedules carry no tags, so the name is what policies tell them apart by.
        until: Whole seconds count.
        role_arn: What the scheduler assumes; `""` when the account has none.

    Returns:
        What is armed; a refusal of AWS is its `why_not`.

    Source:
        https://docs.aws.amazon.com/scheduler/latest/UserGuide/managing-targets-universal.html
    """
    if not role_arn:
        return EndSchedule(
            None, "the account has no role for it; `gpulab init` makes one where it may"
        )
    client: EventBridgeSchedulerClient = cloud.client("scheduler", region)
    schedule = _schedule(instance_id, owner, until, role_arn)
    try:
        with cloud.explained(f"schedule the end of {instance_id}"):
            client.create_schedule(**schedule)
    except AwsError as error:
        if error.code != "ConflictException":
            return EndSchedule(None, error.message, error)
        return _moved(cloud, region, instance_id, schedule, until)
    return EndSchedule(until)


@explained("read the scheduled end")
def read(cloud: Cloud, region: str, instance_id: str, *, owner: str) -> EndSchedule:
    """Read what is armed for an instance; what may not be read counts as not armed, with the reason."""
    client: EventBridgeSchedulerClient = cloud.client("scheduler", region)
    try:
        with cloud.explained(f"read the scheduled end of {instance_id}"):
            found = client.get_schedule(Name=schedule_name(instance_id, owner))
    except NotFound:
        return EndSchedule(None, "nothing is scheduled")
    except AwsError as error:
        return EndSchedule(None, error.message, error)
    if found.get("State") == "DISABLED":
        return EndSchedule(None, "the schedule is switched off")
    until = _moment(found.get("ScheduleExpression", ""))
    return EndSchedule(until, "" if until else "the schedule cannot be read")


def disarm(cloud: Cloud, region: str, instance_id: str, *, owner: str) -> None:
    """
    Remove the scheduled end of an instance that has ended. A schedule that is gone is fine.

    Raises:
        AwsError: AWS refuses; a forgotten schedule ends nothing, removes itself and costs nothing.
    """
    remove(cloud, region, schedule_name(instance_id, owner))


def remove(cloud: Cloud, region: str, name: str) -> None:
    """
    Remove a schedule of ours by its name. One that is gone is fine.

    Raises:
        AwsError: AWS refuses.
    """
    client: EventBridgeSchedulerClient = cloud.client("scheduler", region)
    try:
        with cloud.explained(f"remove the scheduled end {name}"):
            client.delete_schedule(Name=name)
    except NotFound:
        return


@explained("list the scheduled ends")
def schedules(cloud: Cloud, region: str, *, owner: str) -> Mapping[str, str]:
    """
    Find our schedules in a region: the instance that each one ends, by name, sorted.

    Args:
        owner: Whose; `""` for everybody's.

    Raises:
        AwsError: AWS does not say.
    """
    pages = cloud.pages(
        "scheduler",
        region,
        "list_schedules",
        doing=f"list schedules in {region}",
        NamePrefix=f"{_PREFIX}{owner}-" if owner else _PREFIX,
    )
    named = sorted(schedule["Name"] for page in pages for schedule in page["Schedules"])
    found = {name: _NAME.fullmatch(name) for name in named}
    return {name: it["instance"] for name, it in found.items() if it}


def schedule_name(instance_id: str, owner: str) -> str:
    """Name the schedule of an instance; at most 64 characters, so an owner has at most 33."""
    return f"{_PREFIX}{owner}-{instance_id}"


@explained("make the role that ends instances")
def ensure_role(cloud: Cloud, *, owner: str, account_id: str) -> str:
    """
    Make sure the role exists with which the scheduler may end our instances, and nothing else; return its ARN.

    Raises:
        NotAllowed: The credentials may not make roles; then only the timer on the instance is left.
        AwsError: AWS refuses otherwise.
    """
    return _ensure(cloud, f"gpulab-end-{owner}", TAG_OWNER, owner, account_id)


@explained("make the role that ends instances")
def ensure_course_role(cloud: Cloud, *, course: str, account_id: str) -> str:
    """
    Make sure the role exists with which the scheduler may end the instances of a course, whoever owns them; return its ARN.

    Raises:
        NotAllowed, AwsError: As `ensure_role`.
    """
    return _ensure(cloud, course_role_name(course), TAG_COURSE, course, account_id)


def course_role_name(course: str) -> str:
    """Name the role with which the scheduler ends the instances of a course; at most 58 characters."""
    return f"gpulab-end-course-{course}"


def _ensure(cloud: Cloud, name: str, tag: str, value: str, account_id: str) -> str:
    iam: IAMClient = cloud.client("iam", "us-east-1")
    try:
        with cloud.explained(f"make the role {name}"):
            reply = iam.create_role(
                RoleName=name,
                AssumeRolePolicyDocument=json.dumps(_trust(account_id)),
                Description="Lets EventBridge Scheduler end gpulab's instances at their time",
                Tags=[{"Key": tag, "Value": value}],
            )
        arn = reply["Role"]["Arn"]
    except NotAllowed:
        raise
    except AwsError as error:
        if error.code != "EntityAlreadyExists":
            raise
        arn = f"arn:aws:iam::{account_id}:role/{name}"
    with cloud.explained(f"give the role {name} its rights"):
        iam.put_role_policy(
            RoleName=name,
            PolicyName="end-instances",
            PolicyDocument=json.dumps(end_role(tag, value)),
        )
    return arn


def _schedule(instance_id: str, owner: str, until: datetime, role_arn: str) -> Any:
    return {
        "Name": schedule_name(instance_id, owner),
        "Description": "Ends a gpulab instance; made by gpulab",
        "ScheduleExpression": f"at({until.astimezone(UTC):%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": _TARGET,
            "RoleArn": role_arn,
            "Input": json.dumps({"InstanceIds": [instance_id]}),
        },
    }


def _moved(
    cloud: Cloud, region: str, instance_id: str, schedule: Any, until: datetime
) -> EndSchedule:
    client: EventBridgeSchedulerClient = cloud.client("scheduler", region)
    try:
        with cloud.explained(f"move the scheduled end of {instance_id}"):
            client.update_schedule(**schedule)
    except AwsError as error:
        return EndSchedule(None, error.message, error)
    return EndSchedule(until)


def _moment(expression: str) -> datetime | None:
    try:
        naive = expression.removeprefix("at(").removesuffix(")")
        return datetime.fromisoformat(naive).replace(tzinfo=UTC)
    except ValueError:
        return None


def _trust(account_id: str) -> dict[str, Any]:
    """Only the scheduler of this account may assume the role, so that no other account's schedules can borrow it."""
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "scheduler.amazonaws.com"},
                "Action": "sts:AssumeRole",
                "Condition": {"StringEquals": {"aws:SourceAccount": account_id}},
            }
        ],
    }
