"""
The template with which a student lets a course launch in their own account: a CloudFormation stack of three roles, a bucket for the work,
and a budget's guards.

One role trusts the teacher's identity, asks for the student's external id, and may launch and end what carries the course's tag, of the
types and in the regions that the course's labs are given; another lets EventBridge Scheduler end it; the third lets the course's instances
keep the work in the bucket, which stays when the stack is deleted, and says by a tag of which rights the stack was made: a course whose
labs change needs the template applied again. Where the course has a budget, AWS Budgets tells the student how much of it is spent, and
forbids the first role every launch when all of it is. Deleting the stack takes every right back.

Source:
    https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/aws-resource-iam-role.html, aws-resource-budgets-budget.html and
    aws-resource-budgets-budgetsaction.html (November 2026; not tried on a live account)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gpulab.errors import WrongUsage
from gpulab.fleet.needs import types_of
from gpulab.model.budget import LEVELS
from gpulab.model.course import Course
from gpulab.model.instance import TAG_COURSE, TAG_OWNER
from gpulab.rights import roles
from gpulab.rights.policy import Reach, policy
from gpulab.rights.table import Part

_PRINCIPAL = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:(?:user|role)/[\w+=,.@/-]{1,128}")
_SESSION = re.compile(r"arn:(aws[a-z-]*):sts::(\d{12}):assumed-role/([\w+=,.@-]+)/.+")


@dataclass(frozen=True)
class Guards:
    """
    How an account holds a course to its budget.

    Attributes:
        forbids: The policy that is attached to the course's role when the budget is spent.
        email: Whom the budget tells; `""` asks whoever uploads the template.
    """

    forbids: Mapping[str, Any]
    email: str = ""


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
    course: Course,
    *,
    trusted: str,
    external_id: str,
    end_role: str,
    owners: Collection[str],
    account: str = "",
    guards: Guards | None = None,
) -> str:
    """
    Write one student's template, JSON.

    Args:
        trusted: From `trusted_arn`.
        external_id: The student's own.
        end_role: Name of the role that the scheduler assumes.
        owners: Owners of what may run in the account, from `needs_of`; at least one.
        account: Whose it is, so that two are not confused; `""` when nobody knows yet.
        guards: Written where the course has a budget; `None` for a template without guards.

    Raises:
        WrongUsage: The course names no role.
        WrongUsage, Refused: A lab names a GPU or a type that nobody knows.
    """
    name = course.accounts.role_name
    if not name:
        raise WrongUsage(
            f"{course.id} names no role for the students' accounts",
            hint='`role_name = "gpulab-course"` in [accounts] of course.toml',
        )
    resources = {
        "CourseRole": _role(name, _trusts(trusted, external_id), _rights(course, owners), "launch"),
        "EndRole": _role(end_role, _trusts_service("scheduler"), _may_end(course), "end"),
        **_kept_work(course, rights_mark(course, owners)),
    }
    asked: dict[str, Any] = {}
    if guards is not None and course.budget_usd is not None:
        resources |= _budget_guards(course, guards)
        asked = {"Parameters": _parameters(course.budget_usd, guards.email)}
    return json.dumps(
        {
            "AWSTemplateFormatVersion": "2010-09-09",
            "Description": f"Lets the course {course.id} start and end its own instances in this account",
            "Metadata": {"gpulab": {"course": course.id, "account": account}},
            **asked,
            "Resources": resources,
            "Outputs": {"RoleArn": {"Value": {"Fn::GetAtt": ["CourseRole", "Arn"]}}},
        },
        indent=1,
    )


def rights_mark(course: Course, owners: Collection[str]) -> str:
    """
    Return what tells the rights of a template from those of one that was made of other labs, regions or owners, or by an older gpulab.

    Raises:
        WrongUsage, Refused: As `template`.
    """
    return hashlib.sha256(json.dumps(_rights(course, owners)).encode()).hexdigest()[:16]


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


def _trusts_service(name: str) -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Principal": {"Service": f"{name}.amazonaws.com"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}},
    }


def _rights(course: Course, owners: Collection[str]) -> list[dict[str, Any]]:
    reach = Reach(
        course=course.id,
        regions=tuple(sorted(course.regions)),
        instance_types=types_of(course),
        owners=tuple(sorted(owners)),
    )
    wanted = policy([Part.STUDENT, Part.COURSE], reach, commands=("fleet", "close"))
    return [_in_this_account(statement) for statement in wanted["Statement"]]


def _may_end(course: Course) -> list[dict[str, Any]]:
    return [_in_this_account(s) for s in roles.end_role(TAG_COURSE, course.id)["Statement"]]


def _kept_work(course: Course, mark: str) -> dict[str, Any]:
    """Write the bucket, the role with which instances reach the course's part of it, and the profile that a launch names."""
    name = roles.class_role_name(course.id)
    may_keep = roles.work_role("${WorkBucket}", f"course-{course.id}")["Statement"]
    rights = [_in_this_account(statement) for statement in may_keep]
    role = _role(name, roles.trusts_ec2()["Statement"][0], rights, "keep-work")
    # Found by them: the name of a bucket is one that nobody in all of AWS has yet, so CloudFormation makes it up.
    tags = {
        TAG_OWNER: f"course-{course.id}",
        roles.TAG_BUCKET: {"Ref": "WorkBucket"},
        roles.TAG_BUCKET_REGION: {"Ref": "AWS::Region"},
        roles.TAG_RIGHTS: mark,
    }
    role["Properties"]["Tags"] = [{"Key": key, "Value": value} for key, value in tags.items()]
    profile = {"InstanceProfileName": name, "Roles": [{"Ref": "WorkRole"}]}
    return {
        "WorkBucket": _bucket(),
        "WorkRole": role,
        "WorkProfile": {"Type": "AWS::IAM::InstanceProfile", "Properties": profile},
    }


def _bucket() -> dict[str, Any]:
    """Write a bucket as `gpulab init` makes one: private, encrypted, versioned, old versions gone after 30 days."""
    aes = {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    rule = {
        "Id": "gpulab-old-versions",
        "Status": "Enabled",
        "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
    }
    closed = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
    return {
        "Type": "AWS::S3::Bucket",
        # The work is the student's: it outlives the course.
        "DeletionPolicy": "Retain",
        "UpdateReplacePolicy": "Retain",
        "Properties": {
            "PublicAccessBlockConfiguration": dict.fromkeys(closed, True),
            "VersioningConfiguration": {"Status": "Enabled"},
            "BucketEncryption": {"ServerSideEncryptionConfiguration": [aes]},
            "LifecycleConfiguration": {"Rules": [rule]},
        },
    }


def _parameters(budget_usd: Decimal, email: str) -> dict[str, Any]:
    address = {
        "Type": "String",
        "Description": "Told when 50, 80 and 100 % of the budget are spent",
        "AllowedPattern": r"[^@\s]+@[^@\s]+",
    }
    return {
        "BudgetUsd": {
            "Type": "Number",
            "Description": "Dollars before credits in a calendar year, after which the course may launch nothing more",
            "MinValue": 0.01,
            "Default": f"{budget_usd:f}",
        },
        "Email": {**address, "Default": email} if email else address,
    }


def _budget_guards(course: Course, guards: Guards) -> dict[str, Any]:
    """Write what `gpulab guard arm` makes, named as for an owner `course-ID`."""
    owner = f"course-{course.id}"
    budget = f"gpulab-{owner}"
    return {
        "Budget": _budget(budget),
        "NoLaunches": {
            "Type": "AWS::IAM::ManagedPolicy",
            "Properties": {
                "ManagedPolicyName": f"gpulab-no-launches-{owner}",
                "PolicyDocument": dict(guards.forbids),
            },
        },
        "BudgetRole": _role(
            f"gpulab-budget-{owner}",
            _trusts_service("budgets"),
            [_may_forbid()],
            "attach-no-launches",
        ),
        "BudgetAction": _action(budget, course.accounts.role_name),
    }


def _budget(name: str) -> dict[str, Any]:
    notice = {
        "NotificationType": "ACTUAL",
        "ComparisonOperator": "GREATER_THAN",
        "ThresholdType": "PERCENTAGE",
    }
    told = [{"SubscriptionType": "EMAIL", "Address": {"Ref": "Email"}}]
    return {
        "Type": "AWS::Budgets::Budget",
        "Properties": {
            "Budget": {
                "BudgetName": name,
                "BudgetType": "COST",
                # A monthly one would begin anew four times in a term.
                "TimeUnit": "ANNUALLY",
                "BudgetLimit": {"Amount": {"Ref": "BudgetUsd"}, "Unit": "USD"},
                # With them it would not move while credit pays.
                "CostTypes": {"IncludeCredit": False, "IncludeRefund": False},
            },
            "NotificationsWithSubscribers": [
                {"Notification": {**notice, "Threshold": level}, "Subscribers": told}
                for level in LEVELS
            ],
        },
    }


def _may_forbid() -> dict[str, Any]:
    return {
        "Effect": "Allow",
        "Action": ["iam:AttachRolePolicy", "iam:DetachRolePolicy"],
        "Resource": [{"Fn::GetAtt": ["CourseRole", "Arn"]}],
        "Condition": {"ArnEquals": {"iam:PolicyARN": {"Ref": "NoLaunches"}}},
    }


def _action(budget: str, role: str) -> dict[str, Any]:
    return {
        "Type": "AWS::Budgets::BudgetsAction",
        # The budget is called by its name, and so is the role: CloudFormation does not see that this needs them.
        "DependsOn": ["Budget", "CourseRole"],
        "Properties": {
            "BudgetName": budget,
            "NotificationType": "ACTUAL",
            "ActionType": "APPLY_IAM_POLICY",
            "ActionThreshold": {"Type": "PERCENTAGE", "Value": 100},
            "ApprovalModel": "AUTOMATIC",
            "Definition": {
                "IamActionDefinition": {"PolicyArn": {"Ref": "NoLaunches"}, "Roles": [role]}
            },
            "ExecutionRoleArn": {"Fn::GetAtt": ["BudgetRole", "Arn"]},
            "Subscribers": [{"Type": "EMAIL", "Address": {"Ref": "Email"}}],
        },
    }


def _in_this_account(statement: dict[str, Any]) -> dict[str, Any]:
    """Write a statement as CloudFormation takes it: of the account, and the partition, that the stack is in."""
    actions, resources = _listed(statement["Action"]), _listed(statement["Resource"])
    return {**statement, "Action": actions, "Resource": [_substituted(arn) for arn in resources]}


def _substituted(arn: str) -> Any:
    if arn == "*":
        return arn
    _, _, service, region, account, rest = arn.split(":", 5)
    here = "${AWS::AccountId}" if account == "*" else account
    rest = rest.replace("gpulab-*", "${WorkBucket}") if service == "s3" else rest
    return {"Fn::Sub": f"arn:${{AWS::Partition}}:{service}:{region}:{here}:{rest}"}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
