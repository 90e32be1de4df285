"""What a course has set up in an account beside its instances: groups, key pairs, scheduled ends, two roles. Finds and removes it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gpulab.aws import end_schedule, tagged
from gpulab.aws.errors import explained
from gpulab.aws.session import Cloud
from gpulab.aws.workspace_setup import remove_class_role
from gpulab.errors import NotFound
from gpulab.model.instance import TAG_OWNER
from gpulab.model.leftover import Kind, Tagged
from gpulab.rights.roles import class_role_name

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_scheduler import EventBridgeSchedulerClient

_PREFIX = "gpulab-end-"
_INSTANCE = re.compile(r"i-[0-9a-f]{8,17}$")


@dataclass(frozen=True)
class CourseSetup:
    """
    One region's.

    Attributes:
        found: In the order of removing.
    """

    region: str
    found: tuple[Tagged, ...]


@explained("look for the course's setup")
def in_region(
    cloud: Cloud, region: str, *, owner: str, instance_ids: Collection[str]
) -> CourseSetup:
    """
    Find what a course has set up in a region.

    Args:
        owner: The course's own owner id, which its groups and keys carry.
        instance_ids: The instances whose scheduled ends are the course's.

    Raises:
        GpulabError: AWS does not say.
    """
    ec2: EC2Client = cloud.client("ec2", region)
    mine = [{"Name": f"tag:{TAG_OWNER}", "Values": [owner]}]
    with cloud.explained(f"look for the course's setup in {region}"):
        groups = ec2.describe_security_groups(Filters=mine)["SecurityGroups"]  # type: ignore[arg-type] # plain dicts
        keys = ec2.describe_key_pairs(Filters=mine)["KeyPairs"]  # type: ignore[arg-type] # plain dicts
    ends = _scheduled_ends(cloud, region)
    return CourseSetup(
        region,
        (
            *(_one(Kind.SCHEDULE, n, region) for n, i in ends.items() if i in instance_ids),
            *(_one(Kind.SECURITY_GROUP, group["GroupId"], region) for group in groups),
            *(_one(Kind.KEY_PAIR, key["KeyName"], region) for key in keys),
        ),
    )


def remove(cloud: Cloud, resource: Tagged) -> None:
    """
    Remove one of them; one that is gone is fine.

    Raises:
        GpulabError: AWS refuses; `Throttled` means later: a group is in use for a while after its last instance.
    """
    if resource.kind is not Kind.SCHEDULE:
        tagged.delete(cloud, resource)
        return
    client: EventBridgeSchedulerClient = cloud.client("scheduler", resource.region)
    try:
        with cloud.explained(f"remove the scheduled end {resource.id}"):
            client.delete_schedule(Name=resource.id)
    except NotFound:
        return


def roles(cloud: Cloud, course: str) -> tuple[str, ...]:
    """
    Name the roles that a course has made: with which the scheduler ends its instances, and with which they keep the work.

    Raises:
        GpulabError: AWS does not say.
    """
    iam: IAMClient = cloud.client("iam", "us-east-1")
    found = []
    for name in (end_schedule.course_role_name(course), class_role_name(course)):
        with contextlib.suppress(NotFound), cloud.explained("look for the course's roles"):
            iam.get_role(RoleName=name)
            found.append(name)
    return tuple(found)


def remove_roles(cloud: Cloud, course: str, names: Collection[str]) -> None:
    """
    Remove those roles and their rights; one that is gone is fine. What was kept with one stays in its bucket.

    Raises:
        GpulabError: AWS refuses.
    """
    iam: IAMClient = cloud.client("iam", "us-east-1")
    if class_role_name(course) in names:
        remove_class_role(cloud, course=course)
    name = end_schedule.course_role_name(course)
    if name not in names:
        return
    try:
        with cloud.explained(f"remove the role {name}"):
            for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
                iam.delete_role_policy(RoleName=name, PolicyName=policy)
            iam.delete_role(RoleName=name)
    except NotFound:
        return


def _scheduled_ends(cloud: Cloud, region: str) -> Mapping[str, str]:
    """Find the instance that each scheduled end of ours is for, by the schedule's name, sorted."""
    doing = f"list schedules in {region}"
    pages = cloud.pages("scheduler", region, "list_schedules", doing=doing, NamePrefix=_PREFIX)
    names = sorted(schedule["Name"] for page in pages for schedule in page["Schedules"])
    found = {name: _INSTANCE.search(name) for name in names}
    return {name: instance[0] for name, instance in found.items() if instance}


def _one(kind: Kind, resource_id: str, region: str) -> Tagged:
    return Tagged(kind=kind, id=resource_id, region=region, name="", launch_id="")
