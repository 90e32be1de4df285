"""
The template with which a student lets a course launch in their own account: a CloudFormation stack with two roles and nothing else.

One role trusts the teacher's identity, asks for the student's external id, and may launch and end what carries the course's tag; the
other lets EventBridge Scheduler end it. Deleting the stack takes every right back.

Source:
    https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/aws-resource-iam-role.html (November 2026; not tried on a live account)
"""

from __future__ import annotations

import json
import re
from typing import Any

from gpulab.errors import WrongUsage
from gpulab.model.course import Course
from gpulab.model.instance import TAG_COURSE
from gpulab.rights import roles
from gpulab.rights.policy import Reach, policy
from gpulab.rights.table import Part

_PRINCIPAL = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:(?:user|role)/[\w+=,.@/-]{1,128}")
_SESSION = re.compile(r"arn:(aws[a-z-]*):sts::(\d{12}):assumed-role/([\w+=,.@-]+)/.+")


def trusted_arn(arn: str) -> str:
    """
    Return what a role can trust: a user or role, never a session of one.

    Raises:
        WrongUsage: It is neither; an account's root is refused, since it would trust everybody in that account.
    """
    session = _SESSION.fullmatch(arn)
    found = f"arn:{session[1]}:iam::{session[2]}:role/{session[3]}" if session else arn
    if not _PRINCIPAL.fullmatch(found):
        raise WrongUsage(
            f"`{arn}` cannot be trusted by a role",
            hint="Such as arn:aws:iam::123456789012:role/teacher",
        )
    return found


def template(
    course: Course, *, trusted: str, external_id: str, end_role: str, account: str = ""
) -> str:
    """
    Write one student's template, JSON.

    Args:
        trusted: From `trusted_arn`.
        external_id: The student's own.
        end_role: Name of the role that the scheduler assumes.
        account: Whose it is, so that two are not confused; `""` when nobody knows yet.

    Raises:
        WrongUsage: The course names no role.
    """
    name = course.accounts.role_name
    if not name:
        raise WrongUsage(
            f"{course.id} names no role for the students' accounts",
            hint='`role_name = "gpulab-course"` in [accounts] of course.toml',
        )
    resources = {
        "CourseRole": _role(name, _trusts(trusted, external_id), _rights(course), "launch"),
        "EndRole": _role(end_role, _trusts_scheduler(), _may_end(course), "end"),
    }
    return json.dumps(
        {
            "AWSTemplateFormatVersion": "2010-09-09",
            "Description": f"Lets the course {course.id} start and end its own instances in this account",
            "Metadata": {"gpulab": {"course": course.id, "account": account}},
            "Resources": resources,
            "Outputs": {"RoleArn": {"Value": {"Fn::GetAtt": ["CourseRole", "Arn"]}}},
        },
        indent=1,
    )


def _role(name: str, trust: Any, rights: list[Any], policy: str) -> dict[str, Any]:
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "RoleName": name,
            "MaxSessionDuration": 3600,
            "AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [trust]},
            "Policies": [
                {
                    "PolicyName": policy,
                    "PolicyDocument": {"Version": "2012-10-17", "Statement": rights},
                }
            ],
        },
    }


def _trusts(trusted: str, external_id: str) -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Principal": {"AWS": trusted},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"sts:ExternalId": external_id}},
    }


def _trusts_scheduler() -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Principal": {"Service": "scheduler.amazonaws.com"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}},
    }


def _rights(course: Course) -> list[dict[str, Any]]:
    wanted = policy([Part.STUDENT], Reach(course=course.id), commands=("fleet", "close"))
    return [_in_this_account(statement) for statement in wanted["Statement"]]


def _may_end(course: Course) -> list[dict[str, Any]]:
    return [_in_this_account(s) for s in roles.end_role(TAG_COURSE, course.id)["Statement"]]


def _in_this_account(statement: dict[str, Any]) -> dict[str, Any]:
    """Write a statement as CloudFormation takes it: of the account, and the partition, that the stack is in."""
    actions, resources = _listed(statement["Action"]), _listed(statement["Resource"])
    return {**statement, "Action": actions, "Resource": [_substituted(arn) for arn in resources]}


def _substituted(arn: str) -> Any:
    if arn == "*":
        return arn
    _, _, service, region, account, rest = arn.split(":", 5)
    here = "${AWS::AccountId}" if account == "*" else account
    return {"Fn::Sub": f"arn:${{AWS::Partition}}:{service}:{region}:{here}:{rest}"}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
